package codec

import (
	"testing"
)

func TestNegotiateDeflate(t *testing.T) {
	const (
		declined = "declined"
		bad      = "400"
		accepted = "permessage-deflate;server_no_context_takeover;client_no_context_takeover"
		bits     = accepted + ";server_max_window_bits="
		window   = bits + "15"
	)
	tests := []struct{ rule, offer, want string }{
		{"a plain offer", "permessage-deflate", accepted},
		{"Chrome's offer", "permessage-deflate; client_max_window_bits", accepted},
		{"the client's takeover switched off", "permessage-deflate; client_no_context_takeover", accepted},
		{"the server's takeover switched off", "permessage-deflate; server_no_context_takeover", accepted},
		{"everything at once", "permessage-deflate;server_no_context_takeover;client_no_context_takeover;client_max_window_bits=9;server_max_window_bits=15", window},
		{"a client's window is fine, whatever its size", "permessage-deflate; client_max_window_bits=8", accepted},
		{"a client's window of 15", "permessage-deflate; client_max_window_bits=15", accepted},
		{"a server's window of 15 is what it has", "permessage-deflate; server_max_window_bits=15", window},
		{"a server's window of 14", "permessage-deflate; server_max_window_bits=14", bits + "14"},
		{"a server's window of 9", "permessage-deflate; server_max_window_bits=9", bits + "9"},
		{"a server's window of 8, which zlib would not compress with", "permessage-deflate; server_max_window_bits=8", bits + "8"},
		{"both windows", "permessage-deflate; client_max_window_bits=9; server_max_window_bits=\"10\"", bits + "10"},
		{"a server's window of 7", "permessage-deflate; server_max_window_bits=7", declined},
		{"a server's window of 16", "permessage-deflate; server_max_window_bits=16", declined},
		{"a server's window that is no number", "permessage-deflate; server_max_window_bits=1x", declined},
		{"a quoted value", `permessage-deflate; client_max_window_bits="10"`, accepted},
		{"a quoted value with a backslash", `permessage-deflate; server_max_window_bits="1\5"`, window},
		{"white space everywhere", "\t permessage-deflate \t;  client_max_window_bits\t= 10 , x", accepted},

		{"a window of 7", "permessage-deflate; client_max_window_bits=7", declined},
		{"a window of 16", "permessage-deflate; client_max_window_bits=16", declined},
		{"a window of 016", "permessage-deflate; client_max_window_bits=016", declined},
		{"a window with a leading zero", "permessage-deflate; client_max_window_bits=08", declined},
		{"a server's window with a leading zero", "permessage-deflate; server_max_window_bits=015", declined},
		{"a window that is no number", "permessage-deflate; client_max_window_bits=large", declined},
		{"a server's window without value", "permessage-deflate; server_max_window_bits", declined},
		{"a value where none belongs", "permessage-deflate; server_no_context_takeover=1", declined},
		{"a value where none belongs either", "permessage-deflate; client_no_context_takeover=true", declined},
		{"an unknown parameter", "permessage-deflate; level=9", declined},
		{"a parameter in upper case", "permessage-deflate; Client_max_window_bits", declined},
		{"server_no_context_takeover twice", "permessage-deflate; server_no_context_takeover; server_no_context_takeover", declined},
		{"client_no_context_takeover twice", "permessage-deflate; client_no_context_takeover; client_no_context_takeover", declined},
		{"client_max_window_bits twice without value", "permessage-deflate; client_max_window_bits; client_max_window_bits", declined},
		{"client_max_window_bits with and without value", "permessage-deflate; client_max_window_bits=10; client_max_window_bits", declined},
		{"server_max_window_bits twice", "permessage-deflate; server_max_window_bits=15; server_max_window_bits=15", declined},
		{"an unknown parameter twice", "permessage-deflate; x; x", declined},
		{"another extension", "x-webkit-deflate-frame", declined},
		{"another extension with our parameters", "deflate; client_max_window_bits=10", declined},

		{"a bad offer and a good one", "permessage-deflate; level=9, permessage-deflate", accepted},
		{"an offer that cannot be met and its fallback", "permessage-deflate; server_max_window_bits=16, permessage-deflate; server_max_window_bits=15", window},
		{"two good offers: the first wins", "permessage-deflate, permessage-deflate; server_max_window_bits=15", accepted},
		{"two good offers the other way round", "permessage-deflate; server_max_window_bits=15, permessage-deflate", window},
		{"an unknown extension first", "x; y=z, permessage-deflate", accepted},
		{"empty elements are passed over", ",, permessage-deflate ,,", accepted},
		{"more parameters than any client sends", "x;a;b;c;d;e;f;g;h;i;j;k=1, permessage-deflate", accepted},

		{"nothing", "", bad},
		{"only commas", " , ,", bad},
		{"a semicolon for a start", "; client_max_window_bits", bad},
		{"a semicolon at the end", "permessage-deflate;", bad},
		{"two semicolons", "permessage-deflate;; client_max_window_bits", bad},
		{"an equals sign without value", "permessage-deflate; client_max_window_bits=", bad},
		{"an equals sign without name", "permessage-deflate; =10", bad},
		{"an extension with a value", "permessage-deflate=1", bad},
		{"two tokens without a separator", "permessage-deflate client_max_window_bits", bad},
		{"a quoted value that is empty", `permessage-deflate; client_max_window_bits=""`, bad},
		{"a quoted value that is no token", `permessage-deflate; client_max_window_bits="1 0"`, bad},
		{"a quoted value that does not end", `permessage-deflate; client_max_window_bits="10`, bad},
		{"a quoted value that ends in a backslash", `permessage-deflate; client_max_window_bits="10\`, bad},
		{"something behind a quoted value", `permessage-deflate; client_max_window_bits="10"x`, bad},
		{"a quoted extension", `"permessage-deflate"`, bad},
		{"a good offer does not excuse a malformed one", "permessage-deflate, ;", bad},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			if _, _, ok := negotiateDeflate([]byte(tt.offer)); ok == (tt.want == bad) {
				t.Fatalf("well-formed: %v", ok)
			}
			u := Upgrader{Deflate: true}
			head := upgradeHead("Sec-WebSocket-Extensions: " + tt.offer)
			answer, got, err := u.Upgrade(nil, parsed(t, head), nil)
			if tt.want == bad {
				if err != errExtensions {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || got.Deflate != (tt.want != declined) {
				t.Fatalf("got %+v, %v", got, err)
			}
			size := map[string]uint8{declined: 0, accepted: 15, window: 15, bits + "14": 14, bits + "10": 10, bits + "9": 9, bits + "8": 8}
			if got.Window != size[tt.want] {
				t.Errorf("the window is %d bits, want %d", got.Window, size[tt.want])
			}
			header := checkAnswer(t, head, answer).Header.Values("Sec-WebSocket-Extensions")
			if tt.want == declined && len(header) > 0 || tt.want != declined && (len(header) != 1 || header[0] != tt.want) {
				t.Errorf("the answer is %q, want %q", header, tt.want)
			}
		})
	}
}

func TestNegotiateDeflateOverSeveralHeaders(t *testing.T) {
	tests := []struct {
		rule    string
		headers []string
		want    string
	}{
		{"the first header's offer wins", []string{"permessage-deflate; server_max_window_bits=15", "permessage-deflate"}, ";server_max_window_bits=15"},
		{"a declined offer leaves it to the next header", []string{"permessage-deflate; level=9", "permessage-deflate"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			head := upgradeHead("Sec-WebSocket-Extensions: "+tt.headers[0], "sec-websocket-extensions: "+tt.headers[1])
			answer, got, err := (&Upgrader{Deflate: true}).Upgrade(nil, parsed(t, head), nil)
			if err != nil || !got.Deflate {
				t.Fatal(got, err)
			}
			header := checkAnswer(t, head, answer).Header.Values("Sec-WebSocket-Extensions")
			want := "permessage-deflate;server_no_context_takeover;client_no_context_takeover" + tt.want
			if len(header) != 1 || header[0] != want {
				t.Errorf("the answer is %q, want %q", header, want)
			}
		})
	}
}
