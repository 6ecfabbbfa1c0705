// Package client holds the JavaScript client of carillon's topics, so that a server can hand it out.
package client

import _ "embed"

// Script is the client: an ES module for browsers and Node. It must not be changed.
//
//go:embed carillon.js
var Script []byte
