package envelope

import (
	"bytes"
	"encoding/base64"
	"encoding/json"

	"carillon/codec"
)

// AppendJSON appends a value that is known to be JSON's.
func AppendJSON(b []byte, v any) []byte {
	w := bytes.NewBuffer(b)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("envelope: encode JSON: " + err.Error())
	}
	return bytes.TrimSuffix(w.Bytes(), []byte("\n"))
}

// Appender is a value that appends its own JSON.
type Appender interface{ AppendTo(b []byte) []byte }

// AppendReply appends {"id":...,"what":value}.
func AppendReply(b []byte, id json.RawMessage, what string, value any) []byte {
	b = append(b, '{')
	if len(id) > 0 {
		b = append(append(append(b, `"id":`...), id...), ',')
	}
	b = append(append(append(b, '"'), what...), `":`...)
	if large, ok := value.(Appender); ok {
		return append(large.AppendTo(b), '}')
	}
	return append(AppendJSON(b, value), '}')
}

// AppendBroadcast appends the message as the JSON protocol has it.
func AppendBroadcast(b []byte, f *codec.Frame) []byte {
	b = append(b, `{"broadcast":{"data":`...)
	if f.Opcode() == codec.OpBinary {
		b = append(b, '"')
		b = base64.StdEncoding.AppendEncode(b, f.Payload())
		return append(b, `","encoding":"base64"}}`...)
	}
	return append(AppendText(b, f.Payload()), "}}"...)
}
