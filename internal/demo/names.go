package demo

import (
	"slices"
	"strings"
)

// nameList is a list of people, sorted by key. No two have the same key.
type nameList []listed

// listed is an entry. Immutable, so that names are encoded once and not for each welcome.
type listed struct {
	key  string
	json []byte // the name
}

// nameKey is the same for names that differ in case only.
func nameKey(name string) string { return strings.ToLower(name) }

func (l nameList) find(key string) (int, bool) {
	return slices.BinarySearchFunc(l, key, func(e listed, key string) int { return strings.Compare(e.key, key) })
}

// with returns the list with a name that may be in it already. It may change the array of l.
func (l nameList) with(name string) nameList {
	key := nameKey(name)
	i, ok := l.find(key)
	if ok {
		return l
	}
	return slices.Insert(l, i, listed{key: key, json: encode(name)})
}

// without returns the list without a name. It changes the array of l.
func (l nameList) without(name string) nameList {
	i, ok := l.find(nameKey(name))
	if !ok {
		return l
	}
	return slices.Delete(l, i, i+1)
}

// appendJSON appends the list as an array of strings.
func (l nameList) appendJSON(b []byte) []byte {
	b = append(b, '[')
	for i, name := range l {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, name.json...)
	}
	return append(b, ']')
}
