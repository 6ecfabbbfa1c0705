package reactor

import (
	"time"

	"carillon/server/internal/drain"
)

// retire closes a connection whose turn it is.
func (c *Conn) retire(p *drain.Schedule) { c.StartClose(CloseOwn, p.Code, p.Reason(c.id)) }

// TooOld reports whether a connection has reached its own maximum age.
func (c *Conn) TooOld(second uint32) bool {
	set := c.sh.Engine.Settings()
	limit := set.MaxAge - time.Duration(c.share()*set.MaxAgeJitter*float64(set.MaxAge))
	return set.MaxAge > 0 && time.Duration(second-c.opened)*time.Second >= limit // a reload may have turned it off since the sweep began
}
