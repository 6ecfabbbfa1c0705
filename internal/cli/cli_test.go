package cli

import (
	"fmt"
	"os"
	"testing"
)

// programEnv has this process be the program instead of its tests.
const programEnv = "TEST_CARILLON"

func TestMain(m *testing.M) {
	text, err := os.ReadFile("../../config.yaml")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if os.Getenv(programEnv) != "" {
		os.Exit(Main(os.Args[1:], text))
	}
	builtIn = text
	os.Exit(m.Run())
}
