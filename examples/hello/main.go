// Command hello is the demo's workload: an HTTP server that says which Pod
// answered. It is the only file of its image.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	name, err := os.Hostname()
	if err != nil {
		name = "an unnamed device"
	}
	srv := &http.Server{Addr: ":8080", ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "Hello from %s, asked by %s\n", name, r.RemoteAddr)
		})}
	go func() {
		<-ctx.Done()
		srv.Close()
	}()
	fmt.Println("hello: serving on", srv.Addr)
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
}
