// Package chunk says what a chunk is.
package chunk
