//go:build arm64

package payload

import "embed"

const filesDir = "files/arm64"

//go:embed files/arm64
var files embed.FS
