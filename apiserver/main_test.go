package apiserver_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain finds goroutines that outlive the tests: watches, streams and
// proxied connections must end with their clients.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
