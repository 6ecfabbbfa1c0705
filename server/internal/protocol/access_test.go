package protocol

import "testing"

// What is not allowed is the reason of a close frame, too, which has room for 123 bytes.
func TestWhatIsNotAllowedFitsIntoACloseFrame(t *testing.T) {
	for _, e := range []notAllowed{errNoSubscribe, errNoPublish, errNoPresence, errNoPatterns, errSubscribeDenied, errPublishDenied, errTokenNarrower, errNotOneTopic} {
		if len(e) > 123 {
			t.Errorf("%d bytes: %s", len(e), e)
		}
	}
}
