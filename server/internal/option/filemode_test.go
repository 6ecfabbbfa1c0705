package option

import "testing"

func TestFileMode(t *testing.T) {
	for text, want := range map[string]FileMode{"0660": 0o660, "600": 0o600, "0777": 0o777, "0": 0} {
		var m FileMode
		if err := m.UnmarshalText([]byte(text)); err != nil || m != want {
			t.Errorf("%q is %v, %v", text, m, err)
		}
	}
	for _, text := range []string{"", "0888", "rw", "01777", "-1", "0o660", "off"} {
		var m FileMode
		if err := m.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is %v", text, m)
		}
	}
	if text := FileMode(0o60).String(); text != "0060" {
		t.Error(text)
	}
}
