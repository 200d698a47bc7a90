package nodeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// Channels of a remote command over WebSocket: the first byte of each message.
const (
	stdinChannel = iota
	stdoutChannel
	stderrChannel
	errorChannel
	resizeChannel
)

// wantsV5 tells whether the client speaks v5.channel.k8s.io, kubectl's first
// choice, which adds to v4 a way to end stdin. cri-streaming serves the older
// ones.
func wantsV5(r *http.Request) bool { return wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) }

// command is one remote command with its streams open.
type command func(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, resize <-chan remotecommand.TerminalSize) error

// serveV5 upgrades the connection, runs cmd on its channels and ends with the
// Status of the outcome on the error channel.
func (s *server) serveV5(w http.ResponseWriter, r *http.Request, opts *remotecommand.Options, doing string, run command) {
	channel := func(on bool, typ wsstream.ChannelType) wsstream.ChannelType {
		if on {
			return typ
		}
		return wsstream.IgnoreChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: []wsstream.ChannelType{
			stdinChannel:  channel(opts.Stdin, wsstream.ReadChannel),
			stdoutChannel: channel(opts.Stdout, wsstream.WriteChannel),
			stderrChannel: channel(opts.Stderr, wsstream.WriteChannel),
			errorChannel:  wsstream.WriteChannel,
			resizeChannel: wsstream.ReadChannel,
		}},
	})
	conn.SetIdleTimeout(IdleTimeout)
	_, ch, err := conn.Open(w, r)
	if err != nil {
		s.Logger.Debug("a WebSocket was not opened", "path", r.URL.Path, "err", err)
		return
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()

	var in io.Reader
	var out, errOut io.WriteCloser
	if opts.Stdin {
		in = ch[stdinChannel]
	}
	first := errorChannel
	if opts.Stderr {
		errOut, first = ch[stderrChannel], stderrChannel
	}
	if opts.Stdout {
		out, first = ch[stdoutChannel], stdoutChannel
	}
	// An empty message tells the client that the command can be talked to.
	if _, err := ch[first].Write(nil); err != nil {
		return
	}
	var resize chan remotecommand.TerminalSize
	if opts.TTY {
		resize = make(chan remotecommand.TerminalSize)
		go readSizes(ctx, ch[resizeChannel], resize)
	}
	body, err := json.Marshal(outcome(doing, run(ctx, in, out, errOut, resize)))
	if err == nil {
		_, err = ch[errorChannel].Write(body)
	}
	if err != nil {
		s.Logger.Debug("the outcome of a command was not sent", "path", r.URL.Path, "err", err)
	}
}

// readSizes ends with the connection, or with ctx.
func readSizes(ctx context.Context, from io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	for dec := json.NewDecoder(from); ; {
		size := remotecommand.TerminalSize{}
		if dec.Decode(&size) != nil {
			return
		}
		select {
		case to <- size:
		case <-ctx.Done():
			return
		}
	}
}

// outcome is what clients read an exit code from; doing is what failed, in
// cri-streaming's words.
func outcome(doing string, err error) *metav1.Status {
	status := &metav1.Status{Status: metav1.StatusSuccess}
	var exit utilexec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.Exited():
		status = &metav1.Status{
			Status: metav1.StatusFailure,
			Reason: remotecommand.NonZeroExitCodeReason,
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{
				{Type: remotecommand.ExitCodeCauseType, Message: fmt.Sprint(exit.ExitStatus())}}},
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
		}
	default:
		status = &metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError,
			Message: fmt.Sprintf("Internal error occurred: error %s container: %v", doing, err),
		}
	}
	return status
}
