//go:build amd64

package payload

import "embed"

const filesDir = "files/amd64"

//go:embed files/amd64
var files embed.FS
