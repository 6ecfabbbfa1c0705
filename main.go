// Carillon is a WebSocket server that echoes messages or fans them out to every connection.
package main

import (
	_ "embed"
	"os"

	"carillon/internal/cli"
)

//go:embed config.yaml
var builtIn []byte

func main() { os.Exit(cli.Main(os.Args[1:], builtIn)) }
