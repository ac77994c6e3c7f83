// Package chunkstore puts and gets chunks by ID.
package chunkstore
