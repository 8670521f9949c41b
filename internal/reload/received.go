package reload

import (
	"crypto/x509"
	"log/slog"
	"sync"
	"time"
)

// Received is a certificate that somebody hands over, instead of being in a file. It is shown and logged as those of files are, and
// whoever gets it keeps it, and what goes with it.
type Received struct {
	log *slog.Logger

	mu     sync.Mutex
	cert   *x509.Certificate // guarded by mu
	status Status            // guarded by mu
}

// Receive has a certificate shown as in use: of several, the one whose expiry matters. name is what the metrics and the log call it,
// such as "server".
func (w *Watcher) Receive(name string, cert *x509.Certificate, log *slog.Logger) (*Received, error) {
	r := &Received{log: log.With(slog.String("certificate", name)), status: Status{What: "certificate", Name: name}}
	r.use(cert)
	warn(r.log, cert)
	w.Show(r)
	return r, w.showLife(name, r.present)
}

func (r *Received) present() *x509.Certificate {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cert
}

func (r *Received) use(cert *x509.Certificate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cert, r.status.OK, r.status.Since = cert, true, time.Now()
}

// Replace has another one shown.
func (r *Received) Replace(cert *x509.Certificate) {
	r.use(cert)
	tellReplaced(r.log, cert)
}

// SetOK says whether what is in use is what it should be, or the last good one.
func (r *Received) SetOK(ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.OK = ok
}

// Status is how it is.
func (r *Received) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}
