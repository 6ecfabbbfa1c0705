package option

import (
	"errors"
	"fmt"
	"log/slog"

	"carillon/internal/redact"
)

// Secret is a text that is not shown: it prints as "(set)", or as nothing when it is empty.
type Secret string

// MinSecret is how many characters a secret has at least with which other machines can do something.
const MinSecret = 16

// Check reports a secret that is set and can be guessed. The error does not repeat it.
func (s Secret) Check() error {
	if s != "" && len(s) < MinSecret {
		return fmt.Errorf("is shorter than %d characters: generate one, for example with openssl rand -hex 16", MinSecret)
	}
	return nil
}

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redact.Hidden
}

// GoString hides the secret.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText hides the secret. What it writes is refused when it is read back as an option, so that it
// never becomes a token by accident.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes what can stand in a header line. Its error does not repeat the text.
func (s *Secret) UnmarshalText(text []byte) error {
	for _, c := range text {
		if c <= ' ' || c > '~' {
			return errors.New("has a space or other character not allowed in a header: expected visible ASCII characters")
		}
	}
	*s = Secret(text)
	return nil
}
