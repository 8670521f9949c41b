// Package browser tests tokend in Chromium: the API page, and calls by pages of other origins. It
// runs the built program, and is in this module so that the service's module does not require the
// packages that drive the browser.
package browser
