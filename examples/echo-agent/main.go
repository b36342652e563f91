// Echo-agent answers with who it is and what it was sent. Standard library only.
//
//	GET  /healthz    200 once it serves
//	GET  /           who answers: instance, release, digest, host, start, and the request as it arrived
//	POST /           the body, as it came
//	GET  /events     server-sent events, ?count= of them (default 10), ?ms= apart (default 100)
//	GET  /slow?ms=   answers after so many milliseconds
//
// It listens on :$PORT (8080 when unset) and ends on SIGTERM, once the requests under way are answered.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

const (
	maxBody  = 10 << 20
	maxDelay = 60_000
	maxCount = 10_000
	grace    = 8 * time.Second
)

// identity tells one start of the program from the next.
type identity struct {
	Instance  string    `json:"instance"`
	Release   string    `json:"release"`
	Digest    string    `json:"digest"`
	Hostname  string    `json:"hostname"`
	StartedAt time.Time `json:"started_at"`
}

// answer is an identity with the request that it was asked by.
type answer struct {
	identity
	Method  string              `json:"method"`
	Path    string              `json:"path"`
	Host    string              `json:"host"`
	Query   map[string][]string `json:"query"`
	Headers map[string][]string `json:"headers"`
	Remote  string              `json:"remote"`
}

func newIdentity() identity {
	id := make([]byte, 8)
	rand.Read(id)
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "unknown"
	}
	return identity{
		Instance:  hex.EncodeToString(id),
		Release:   os.Getenv("SLIPWAY_RELEASE"),
		Digest:    os.Getenv("SLIPWAY_DIGEST"),
		Hostname:  hostname,
		StartedAt: time.Now().UTC(),
	}
}

// number reads a query parameter between 0 and most.
func number(r *http.Request, name string, fallback, most int) (int, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return fallback, nil
	}
	value, err := strconv.Atoi(text)
	if err != nil || value < 0 || value > most {
		return 0, fmt.Errorf("%s must be a number from 0 to %d", name, most)
	}
	return value, nil
}

// pause waits, unless the client goes away first.
func pause(ctx context.Context, ms int) bool {
	select {
	case <-time.After(time.Duration(ms) * time.Millisecond):
		return true
	case <-ctx.Done():
		return false
	}
}

func (me identity) describe(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(answer{me, r.Method, r.URL.Path, r.Host, r.URL.Query(), r.Header, r.RemoteAddr})
}

func (me identity) echo(w http.ResponseWriter, r *http.Request) {
	if kind := r.Header.Get("Content-Type"); kind != "" {
		w.Header().Set("Content-Type", kind)
	}
	w.Header().Set("X-Instance", me.Instance)
	io.Copy(w, http.MaxBytesReader(w, r.Body, maxBody))
}

func (me identity) events(w http.ResponseWriter, r *http.Request) {
	count, err1 := number(r, "count", 10, maxCount)
	ms, err2 := number(r, "ms", 100, maxDelay)
	if err := errors.Join(err1, err2); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	for i := range count {
		fmt.Fprintf(w, "id: %d\ndata: {\"instance\":%q,\"n\":%d}\n\n", i, me.Instance, i)
		if out.Flush() != nil || !pause(r.Context(), ms) {
			return
		}
	}
}

func (me identity) slow(w http.ResponseWriter, r *http.Request) {
	ms, err := number(r, "ms", 1000, maxDelay)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if pause(r.Context(), ms) {
		me.describe(w, r)
	}
}

func main() {
	me := newIdentity()
	routes := http.NewServeMux()
	routes.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	routes.HandleFunc("GET /{$}", me.describe)
	routes.HandleFunc("POST /{$}", me.echo)
	routes.HandleFunc("GET /events", me.events)
	routes.HandleFunc("GET /slow", me.slow)

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
		last, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		ended <- server.Shutdown(last)
	}()
	log.Printf("instance %s listens on %s", me.Instance, server.Addr)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	if err := <-ended; err != nil {
		log.Printf("some requests were cut off: %v", err)
	}
}
