//go:build !amd64 && !arm64 && !arm

package payload

import "embed"

const filesDir = "."

var files embed.FS
