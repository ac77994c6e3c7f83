// Package consul captures Consul.
package consul
