// Package option has what the options of the server and of its cluster are made of: sizes, secrets and file modes.
package option

// Error is an option that cannot be used.
type Error struct {
	Key     string // as in the configuration file: "limits.max_message", "endpoints[1].path"
	Problem string // what is wrong and what is expected
}

func (e *Error) Error() string { return e.Key + ": " + e.Problem }
