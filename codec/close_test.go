package codec

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestCloseCodeValid(t *testing.T) {
	ranges := []struct {
		rule     string
		from, to int
		valid    bool
	}{
		{"0 to 999 are not used", 0, 999, false},
		{"1000 to 1003 are defined", 1000, 1003, true},
		{"1004 is reserved", 1004, 1004, false},
		{"1005 says that there was no code", 1005, 1005, false},
		{"1006 says that there was no close frame", 1006, 1006, false},
		{"1007 to 1011 are defined", 1007, 1011, true},
		{"1012 to 1014 are registered", 1012, 1014, true},
		{"1015 says that TLS failed", 1015, 1015, false},
		{"1016 to 2999 are reserved", 1016, 2999, false},
		{"3000 to 3999 belong to libraries", 3000, 3999, true},
		{"4000 to 4999 belong to applications", 4000, 4999, true},
		{"5000 and above are not defined", 5000, 65535, false},
	}
	next := 0
	for _, r := range ranges {
		if r.from != next {
			t.Fatalf("the table leaves out %d", next)
		}
		next = r.to + 1
		for c := r.from; c <= r.to; c++ {
			if CloseCode(c).Valid() != r.valid {
				t.Errorf("%s: Valid(%d) is %v", r.rule, c, !r.valid)
			}
			code, _, err := parseClose([]byte{byte(c >> 8), byte(c)})
			if r.valid && (err != nil || code != CloseCode(c)) || !r.valid && !errors.Is(err, ErrCloseCode) {
				t.Errorf("%s: a close frame with %d gives %v, %v", r.rule, c, code, err)
			}
			sent := AppendClose(nil, CloseCode(c), "")
			switch {
			case r.valid && (len(sent) != 4 || sent[2] != byte(c>>8) || sent[3] != byte(c)):
				t.Errorf("%s: %d is sent as % x", r.rule, c, sent)
			case c == 1005 && string(sent) != "\x88\x00":
				t.Errorf("1005 is sent as % x", sent)
			case !r.valid && c != 1005 && string(sent) != "\x88\x02\x03\xf3":
				t.Errorf("%s: %d is sent as % x instead of 1011", r.rule, c, sent)
			}
		}
	}
	if next != 1<<16 {
		t.Errorf("the table ends at %d", next)
	}
}

func TestNames(t *testing.T) {
	for want, got := range map[string]string{
		"1000 (normal closure)":  CloseNormal.String(),
		"1013 (try again later)": CloseTryAgainLater.String(),
		"4001":                   CloseCode(4001).String(),
		"text":                   OpText.String(),
		"pong":                   OpPong.String(),
		"opcode 3":               Opcode(3).String(),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for c := CloseNormal; c <= CloseBadGateway; c++ {
		if c != 1004 && !strings.Contains(c.String(), "(") {
			t.Errorf("%v has no name", c)
		}
	}
}

func TestProtocolErrorsFitACloseFrame(t *testing.T) {
	for _, err := range []*ProtocolError{ErrUnmasked, ErrReservedBits, ErrReservedOpcode, ErrNonMinimalLength,
		ErrLengthOverflow, ErrControlTooLong, ErrControlFragmented, ErrUnexpectedContinuation, ErrExpectedContinuation,
		ErrInvalidUTF8, ErrClosePayload, ErrCloseCode, ErrCloseReasonUTF8, ErrMessageTooBig, ErrTooManyFragments,
		ErrDeflateData, ErrCompressedControl, ErrCompressedContinuation} {
		if !err.Code.Valid() || err.Rule == "" || len(err.Rule) > maxReason || !strings.HasPrefix(err.Section, "RFC ") {
			t.Errorf("%+v", err)
		}
		if strings.ContainsAny(err.Error(), "\r\n") {
			t.Errorf("%q is more than one line", err.Error())
		}
	}
}

func TestAppendClose(t *testing.T) {
	tests := []struct {
		rule   string
		code   CloseCode
		reason string
		want   string // the payload
	}{
		{"no status is no payload, whatever the reason", CloseNoStatus, "reason", ""},
		{"a code is two bytes", CloseGoingAway, "", "\x03\xe9"},
		{"a reason follows", CloseNormal, "bye", "\x03\xe8bye"},
		{"the reason is kept when the code has to be replaced", CloseAbnormal, "lost", "\x03\xf3lost"},
		{"123 bytes fit", CloseNormal, strings.Repeat("x", 123), "\x03\xe8" + strings.Repeat("x", 123)},
		{"124 bytes are cut", CloseNormal, strings.Repeat("x", 124), "\x03\xe8" + strings.Repeat("x", 123)},
		{"a character is not cut in two", CloseNormal, strings.Repeat("x", 122) + "κ", "\x03\xe8" + strings.Repeat("x", 122)},
		{"a character that ends there stays", CloseNormal, strings.Repeat("x", 121) + "κ!", "\x03\xe8" + strings.Repeat("x", 121) + "κ"},
		{"four bytes are not cut either", CloseNormal, strings.Repeat("x", 120) + "🎉", "\x03\xe8" + strings.Repeat("x", 120)},
		{"what is not UTF-8 is replaced", CloseNormal, "a\xff", "\x03\xe8a\uFFFD"},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			got := string(AppendClose([]byte("before"), tt.code, tt.reason))
			if want := "before\x88" + string(rune(len(tt.want))) + tt.want; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if !utf8.ValidString(got[min(len(got), 10):]) {
				t.Error("the reason is not UTF-8")
			}
		})
	}
}
