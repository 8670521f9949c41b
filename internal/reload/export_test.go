package reload

// Exported for tests.
const MaxSize = maxSize

var (
	ErrEmpty      = errEmpty
	ErrTooLarge   = errTooLarge
	ErrNotRegular = errNotRegular
	ErrCutShort   = errCutShort

	ParseCertificates = parseCertificates
)
