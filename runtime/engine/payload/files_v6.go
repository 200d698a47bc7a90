//go:build arm && !arm.7

package payload

import "embed"

const filesDir = "files/armv6"

//go:embed files/armv6
var files embed.FS
