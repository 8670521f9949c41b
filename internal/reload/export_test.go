package reload

// What the tests look for.
const MaxSize = maxSize

var (
	ErrEmpty      = errEmpty
	ErrTooLarge   = errTooLarge
	ErrNotRegular = errNotRegular
	ErrCutShort   = errCutShort

	ParseCertificates = parseCertificates
)
