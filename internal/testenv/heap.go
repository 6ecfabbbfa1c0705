package testenv

import "runtime"

// HeapInUse returns the bytes that are allocated after a collection.
func HeapInUse() int64 {
	runtime.GC()
	runtime.GC() // what the first one has finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
