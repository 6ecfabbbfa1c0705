package codec

import "fmt"

// CloseError says how a connection ended.
type CloseError struct {
	// Code is the one of the close frame that came first, or [CloseNoStatus] when it had none,
	// or [CloseAbnormal] when the connection was lost without one.
	Code   CloseCode
	Reason string // of that frame, or what happened
	Remote bool   // the peer began
	Err    error  // the error of a lost connection, such as io.EOF or a system call's
}

func (e *CloseError) Error() string {
	who := "server"
	if e.Remote {
		who = "peer"
	}
	if e.Reason == "" {
		return fmt.Sprintf("closed by the %s: %v", who, e.Code)
	}
	return fmt.Sprintf("closed by the %s: %v: %s", who, e.Code, e.Reason)
}

func (e *CloseError) Unwrap() error { return e.Err }
