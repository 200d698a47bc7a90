//go:build arm && arm.7

package payload

import "embed"

const filesDir = "files/armv7"

//go:embed files/armv7
var files embed.FS
