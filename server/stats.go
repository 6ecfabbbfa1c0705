package server

import "carillon/server/stats"

// Stats is what has happened since the server was made. Counters never go down.
type Stats = stats.Totals

// Stats adds up the counters of all loops. It may be called from any goroutine; numbers that belong
// together may be a message apart.
func (s *Server) Stats() Stats {
	st := stats.NewTotals()
	st.Sockets, st.AcceptErrors = s.engine.Sockets.Load(), s.engine.AcceptErrors.Load()
	st.Add(&s.engine.Unowned)
	st.Drops[DropClusterGap] = s.hub.Remote.Counts().Lost.Load()
	for _, sh := range s.engine.AllShards() {
		st.Add(&sh.Stats)
	}
	return st
}

// DropReason says why a message will never reach one of its receivers. The set is closed.
type DropReason = stats.DropReason

// The reasons, which [stats.DropReason] explains one by one.
const (
	DropOldest       = stats.DropOldest
	DropNewest       = stats.DropNewest
	DropConflated    = stats.DropConflated
	DropSlowConsumer = stats.DropSlowConsumer
	DropWriteTimeout = stats.DropWriteTimeout
	DropClosed       = stats.DropClosed
	DropShutdown     = stats.DropShutdown
	DropOverloaded   = stats.DropOverloaded
	DropMemory       = stats.DropMemory
	DropHistory      = stats.DropHistory
	DropClusterGap   = stats.DropClusterGap
)

// RefuseReason says why a connection did not become a WebSocket. The set is closed.
type RefuseReason = stats.RefuseReason

// The reasons, which [stats.RefuseReason] explains one by one.
const (
	RefuseMalformed         = stats.RefuseMalformed
	RefuseNotFound          = stats.RefuseNotFound
	RefuseMethod            = stats.RefuseMethod
	RefuseTimeout           = stats.RefuseTimeout
	RefuseNoUpgrade         = stats.RefuseNoUpgrade
	RefuseHeadTooLong       = stats.RefuseHeadTooLong
	RefuseVersion           = stats.RefuseVersion
	RefuseFull              = stats.RefuseFull
	RefuseDraining          = stats.RefuseDraining
	RefuseTopic             = stats.RefuseTopic
	RefuseHandler           = stats.RefuseHandler
	RefusePanic             = stats.RefusePanic
	RefuseLost              = stats.RefuseLost
	RefuseDescriptors       = stats.RefuseDescriptors
	RefuseOrigin            = stats.RefuseOrigin
	RefuseAddressFull       = stats.RefuseAddressFull
	RefuseHandshakes        = stats.RefuseHandshakes
	RefuseAddressHandshakes = stats.RefuseAddressHandshakes
	RefuseProxyPeer         = stats.RefuseProxyPeer
	RefuseProxyMissing      = stats.RefuseProxyMissing
	RefuseProxyMalformed    = stats.RefuseProxyMalformed
	RefuseNoToken           = stats.RefuseNoToken
	RefuseTokenMalformed    = stats.RefuseTokenMalformed
	RefuseTokenAlgorithm    = stats.RefuseTokenAlgorithm
	RefuseTokenKey          = stats.RefuseTokenKey
	RefuseTokenSignature    = stats.RefuseTokenSignature
	RefuseTokenExpired      = stats.RefuseTokenExpired
	RefuseTokenEarly        = stats.RefuseTokenEarly
	RefuseTokenIssuer       = stats.RefuseTokenIssuer
	RefuseTokenAudience     = stats.RefuseTokenAudience
	RefuseNoKeys            = stats.RefuseNoKeys
	RefuseHook              = stats.RefuseHook
	RefuseHookFailed        = stats.RefuseHookFailed
	RefuseHookBusy          = stats.RefuseHookBusy
	RefuseUndecided         = stats.RefuseUndecided
	RefuseEarly             = stats.RefuseEarly
	RefuseMemory            = stats.RefuseMemory
	RefuseTLS               = stats.RefuseTLS
	RefusePlainText         = stats.RefusePlainText
	RefuseTLSHello          = stats.RefuseTLSHello
	RefuseTLSVersion        = stats.RefuseTLSVersion
	RefuseTLSProtocol       = stats.RefuseTLSProtocol
	RefuseTLSCertificate    = stats.RefuseTLSCertificate
	RefuseTLSAlert          = stats.RefuseTLSAlert
	RefuseTLSFailed         = stats.RefuseTLSFailed
	RefuseTLSTimeout        = stats.RefuseTLSTimeout
	RefuseTLSUnread         = stats.RefuseTLSUnread
	RefuseTLSEvicted        = stats.RefuseTLSEvicted
	RefuseTLSRecords        = stats.RefuseTLSRecords
	RefuseEvicted           = stats.RefuseEvicted
)

// CutReason says why the server ended a WebSocket by itself, although nothing was wrong with the protocol and
// the server goes on. The set is closed.
type CutReason = stats.CutReason

// The reasons, which [stats.CutReason] explains one by one.
const (
	CutSlowConsumer      = stats.CutSlowConsumer
	CutWriteTimeout      = stats.CutWriteTimeout
	CutMemory            = stats.CutMemory
	CutMessageRate       = stats.CutMessageRate
	CutByteRate          = stats.CutByteRate
	CutDecompressionRate = stats.CutDecompressionRate
	CutPublishRate       = stats.CutPublishRate
	CutPingTimeout       = stats.CutPingTimeout
	CutIdle              = stats.CutIdle
	CutMaxAge            = stats.CutMaxAge
	CutExpired           = stats.CutExpired
	CutMistakes          = stats.CutMistakes
	CutTLSRecords        = stats.CutTLSRecords
)

// PlainCutReason says why the server closed a connection that Options.HTTP had. The set is closed.
type PlainCutReason = stats.PlainCutReason

// The reasons, which [stats.PlainCutReason] explains one by one.
const (
	PlainCutBodyTimeout  = stats.PlainCutBodyTimeout
	PlainCutWriteTimeout = stats.PlainCutWriteTimeout
	PlainCutIdle         = stats.PlainCutIdle
)
