package authn

import (
	"encoding/base64"
	"net/http"
	"strings"
	"unicode/utf8"
)

const protocolHeader = "Sec-Websocket-Protocol"

// protocolToken returns the bearer token that a WebSocket handshake carries in
// its subprotocol list, as k8s.io/apiserver/pkg/authentication/request/websocket
// reads it: base64url without padding, valid UTF-8, at most one.
func protocolToken(req *http.Request) string {
	if !strings.EqualFold(req.Header.Get("Upgrade"), "websocket") {
		return ""
	}
	token := ""
	for _, header := range req.Header[protocolHeader] {
		for _, p := range strings.Split(header, ",") {
			encoded, ok := strings.CutPrefix(strings.TrimSpace(p), tokenProtocolPrefix)
			if !ok {
				continue
			}
			b, err := base64.RawURLEncoding.DecodeString(encoded)
			if err != nil || !utf8.Valid(b) || token != "" {
				return ""
			}
			token = string(b)
		}
	}
	return token
}

// removeTokenProtocol drops the subprotocol that carried the token, so that it
// neither is echoed to the client nor reaches the device.
func removeTokenProtocol(req *http.Request) {
	headers := req.Header[protocolHeader]
	if len(headers) == 0 {
		return
	}
	var kept []string
	for _, header := range headers {
		for _, p := range strings.Split(header, ",") {
			if p = strings.TrimSpace(p); p != "" && !strings.HasPrefix(p, tokenProtocolPrefix) {
				kept = append(kept, p)
			}
		}
	}
	req.Header.Set(protocolHeader, strings.Join(kept, ","))
}
