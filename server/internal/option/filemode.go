package option

import (
	"fmt"
	"strconv"
)

// FileMode holds the permission bits of a unix socket's file, written as an octal number such as 0660.
type FileMode uint32

// String writes the bits as an octal number with a leading zero.
func (m FileMode) String() string { return fmt.Sprintf("%04o", uint32(m)) }

// MarshalText is String.
func (m FileMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads an octal number up to 0777.
func (m *FileMode) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 8, 32)
	if err != nil || n > 0o777 {
		return fmt.Errorf("%q is not a file mode: expected an octal number up to 0777, such as 0660", text)
	}
	*m = FileMode(n)
	return nil
}
