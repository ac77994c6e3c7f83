package chunkstore

// Held returns how many bytes of stored frames are fetched ahead, or being so.
func (s *Store) Held() int64 {
	s.fetch.mu.Lock()
	defer s.fetch.mu.Unlock()
	return s.fetch.bytes
}
