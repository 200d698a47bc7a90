package announce_test

import (
	"testing"

	"edged/internal/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }
