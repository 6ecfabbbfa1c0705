package envelope

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strconv"
	"strings"

	"carillon/codec"
	"carillon/server/topic"
)

// AppendMessageEvent appends a message as a server-sent event: text as it is, binary in base64.
func AppendMessageEvent(b []byte, id string, op codec.Opcode, payload []byte) []byte {
	if op == codec.OpBinary {
		return AppendEvent(b, "binary", id, base64.StdEncoding.AppendEncode(nil, payload))
	}
	return AppendEvent(b, "", id, payload)
}

// AppendEvent appends a server-sent event (HTML, section 9.2). What ends a line in the data, be it CR, LF
// or both, ends it on the other side as LF.
func AppendEvent(b []byte, kind, id string, data []byte) []byte {
	if kind != "" {
		b = append(append(append(b, "event: "...), kind...), '\n')
	}
	if id != "" {
		b = append(append(append(b, "id: "...), id...), '\n')
	}
	if len(data) >= LargeText {
		lines := bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r"))
		b = slices.Grow(b, len(data)+(lines+2)*len("data: "))
	}
	b = append(b, "data: "...)
	start := 0
	for i, c := range data {
		if c > '\r' || c != '\r' && c != '\n' {
			continue
		}
		if c == '\n' && i > 0 && data[i-1] == '\r' { // it has ended the line already
			start = i + 1
			continue
		}
		b = append(append(b, data[start:i]...), "\ndata: "...)
		start = i + 1
	}
	return append(append(b, data[start:]...), "\n\n"...)
}

// NoEventID is the id of an event from which a stream cannot be resumed.
const NoEventID = "-"

// EventID is the position in a topic as the id of an event.
func EventID(epoch string, offset uint64) string { return epoch + ":" + strconv.FormatUint(offset, 10) }

// ParseEventID reads the position that an event had as its id.
func ParseEventID(id string) (p topic.Position, ok bool) {
	epoch, offset, ok := strings.Cut(id, ":")
	n, err := strconv.ParseUint(offset, 10, 64)
	return topic.Position{Offset: n, Epoch: epoch}, ok && err == nil && epoch != ""
}

// Comment keeps a quiet connection alive.
var Comment = []byte(":\n\n")

// AppendCloseEvent tells the client why the stream ends, as a close frame would.
func AppendCloseEvent(b []byte, code codec.CloseCode, reason string) []byte {
	data := append([]byte(`{"code":`), strconv.Itoa(int(code))...)
	data = append(data, `,"reason":`...)
	data = append(AppendJSON(data, reason), '}')
	return AppendEvent(b, "close", "", data)
}
