// Package azure is the Backend in a container of Azure Blob Storage or of what
// speaks like it.
//
// An object is a block blob; its name is the URL's prefix, a slash, and the
// object's. It is put in one request with If-None-Match: *, so that one of several
// clients wins and the others are told, and with its MD5, so that the service
// refuses what was changed on the way. Nothing is sent twice: whether to try again
// is the caller's to decide, who knows what the name stands for. A listing shows
// what was put before: Lag is zero. It comes in pages, by marks that the service
// hands out: a Container is a Pager.
//
// Only what is there counts: blobs that are deleted and kept for a while, earlier
// versions and snapshots are neither listed nor read, and are no obstacle to a
// name's being taken again. Remove removes a blob with its snapshots. Directories,
// which accounts with a hierarchical namespace have, are no objects.
//
// URLs are
//
//	azure://CONTAINER/PREFIX
//	azure+https://HOST:PORT/ACCOUNT/CONTAINER/PREFIX
//	azure+http://HOST:PORT/ACCOUNT/CONTAINER/PREFIX
//
// and hold no secrets. The parts of a prefix do not end with a dot, which Azure
// may drop; no object of a repository has such a name.
//
// Credentials are the first of these that is set:
//
//	AZURE_STORAGE_KEY                  key of AZURE_STORAGE_ACCOUNT, base64
//	AZURE_STORAGE_SAS_TOKEN            to read, write, delete and list
//	AZURE_STORAGE_CONNECTION_STRING    with a key or a shared access signature
//	AZURE_CLIENT_SECRET                of the service principal AZURE_CLIENT_ID of
//	AZURE_CLIENT_CERTIFICATE_PATH      the tenant AZURE_TENANT_ID
//	AZURE_FEDERATED_TOKEN_FILE         workload identity of Kubernetes
//
// and else the machine's managed identity; AZURE_CLIENT_ID says which, if it has
// several. AZURE_CLIENT_CERTIFICATE_PASSWORD opens a certificate's file.
// AZURE_AUTHORITY_HOST is where tokens come from in other clouds; who names one
// vouches for it.
//
// An azure:// URL is in the account AZURE_STORAGE_ACCOUNT of the public cloud, or at
// AZURE_STORAGE_ENDPOINT (https://ACCOUNT.blob.core.chinacloudapi.cn, or
// http://127.0.0.1:10000/ACCOUNT), or where the connection string says.
package azure
