// The program that tests run as a service, or as a builder: MODE says how it behaves, its routes show what its sandbox
// lets it do.
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

var kept [][]byte
var boot = fmt.Sprint(time.Now().UnixNano(), ".", os.Getpid())

func main() {
	fmt.Println("mode", os.Getenv("MODE"))
	port := os.Getenv("PORT")
	switch os.Getenv("MODE") {
	case "crash":
		fmt.Println("boom")
		os.Exit(3)
	case "stays":
		fmt.Println("hello")
		time.Sleep(time.Hour)
	case "ends":
		os.Exit(10)
	case "mute":
		time.Sleep(time.Hour)
	case "asked":
		port = os.Getenv("ASKED")
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
	case "daemon":
		child := exec.Command("/proc/self/exe")
		child.Env = []string{"MODE=mute"}
		if err := child.Start(); err != nil {
			panic(err)
		}
		os.Exit(4)
	case "hog":
		hog(4096)
	}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getenv("SLIPWAY_INSTANCE")) })
	http.HandleFunc("/env", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getenv(r.URL.Query().Get("name"))) })
	http.HandleFunc("/boot", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, boot) })
	http.HandleFunc("/ids", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getuid(), " ", os.Getpid()) })
	http.HandleFunc("/read", func(w http.ResponseWriter, r *http.Request) {
		data, err := os.ReadFile(r.URL.Query().Get("path"))
		if err != nil {
			http.Error(w, err.Error(), 404)
			return
		}
		w.Write(data)
	})
	http.HandleFunc("/write", func(w http.ResponseWriter, r *http.Request) {
		if err := os.WriteFile(r.URL.Query().Get("path"), []byte("x"), 0o644); err != nil {
			http.Error(w, err.Error(), 403)
		}
	})
	http.HandleFunc("/hog", func(w http.ResponseWriter, r *http.Request) {
		mb, _ := strconv.Atoi(r.URL.Query().Get("mb"))
		hog(mb)
	})
	http.HandleFunc("/exit", func(w http.ResponseWriter, r *http.Request) { os.Exit(9) })
	listen := os.Getenv("LISTEN")
	if listen == "" {
		listen = "127.0.0.1"
	}
	panic(http.ListenAndServe(listen+":"+port, nil))
}

func hog(mb int) {
	for i := 0; i < mb; i += 8 {
		piece := make([]byte, 8<<20)
		for j := 0; j < len(piece); j += 4096 {
			piece[j] = 1
		}
		kept = append(kept, piece)
		time.Sleep(time.Millisecond)
	}
}
