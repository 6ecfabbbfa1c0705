package reactor

import "testing"

// A line of audiences keeps its order and gives its memory back.
func TestAudienceQueue(t *testing.T) {
	var q queue[Audience]
	var all [1000]Audience
	next := 0
	for i := range all {
		q.push(&all[i])
		if i%3 > 0 {
			if q.pop() != &all[next] {
				t.Fatalf("number %d is another", next)
			}
			next++
		}
	}
	for q.Len() > 0 {
		if q.pop() != &all[next] {
			t.Fatalf("number %d is another", next)
		}
		next++
	}
	if next != len(all) || cap(q.List) > len(all) {
		t.Errorf("%d came out, and there is room for %d", next, cap(q.List))
	}
}
