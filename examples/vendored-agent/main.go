// Vendored-agent hands out ULIDs. It needs a third-party module, which is in vendor/: it builds without any network.
//
//	GET /healthz   200 once it serves
//	GET /          a new ULID, with the instance and release that made it
//
// It listens on :$PORT (8080 when unset) and ends on SIGTERM.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/oklog/ulid/v2"
)

func main() {
	instance := ulid.Make().String()
	routes := http.NewServeMux()
	routes.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	routes.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]string{
			"ulid":     ulid.Make().String(),
			"instance": instance,
			"release":  os.Getenv("SLIPWAY_RELEASE"),
			"digest":   os.Getenv("SLIPWAY_DIGEST"),
		})
	})

	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	server := &http.Server{Addr: net.JoinHostPort("", port), Handler: routes, ReadHeaderTimeout: 10 * time.Second}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		<-ctx.Done()
		last, cancel := context.WithTimeout(context.Background(), 8*time.Second)
		defer cancel()
		ended <- server.Shutdown(last)
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	if err := <-ended; err != nil {
		log.Printf("some requests were cut off: %v", err)
	}
}
