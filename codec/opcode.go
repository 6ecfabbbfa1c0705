package codec

import "strconv"

// Opcode says what a frame carries (RFC 6455, section 5.2).
type Opcode byte

// The opcodes of RFC 6455, section 11.8. All others are reserved.
const (
	OpContinuation Opcode = 0
	OpText         Opcode = 1
	OpBinary       Opcode = 2
	OpClose        Opcode = 8
	OpPing         Opcode = 9
	OpPong         Opcode = 10
)

// definedOpcodes has the bit 1<<op for each opcode that is not reserved.
const definedOpcodes = 1<<OpContinuation | 1<<OpText | 1<<OpBinary | 1<<OpClose | 1<<OpPing | 1<<OpPong

// String returns the name that RFC 6455 uses, or "opcode 3" for a reserved one.
func (op Opcode) String() string {
	switch op {
	case OpContinuation:
		return "continuation"
	case OpText:
		return "text"
	case OpBinary:
		return "binary"
	case OpClose:
		return "close"
	case OpPing:
		return "ping"
	case OpPong:
		return "pong"
	}
	return "opcode " + strconv.Itoa(int(op))
}

func (op Opcode) isControl() bool { return op >= OpClose }
