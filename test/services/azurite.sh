# azurite, from npm, keeps blobs of Azure in a folder: once over http, and once over https
# with a certificate of its own, where it takes tokens of identities, too. MIT.
azurite() {
	keep azurite "$services/azurite/package-lock.json" azurite_install
	export AZURE_STORAGE_ACCOUNT=cutbank AZURE_STORAGE_KEY=Zm9yLXRlc3RzLW9uLWxvb3BiYWNr
	unset AZURE_STORAGE_SAS_TOKEN AZURE_STORAGE_CONNECTION_STRING AZURE_STORAGE_ENDPOINT
	local run=(env "AZURITE_ACCOUNTS=$AZURE_STORAGE_ACCOUNT:$AZURE_STORAGE_KEY" node "$kept/node_modules/azurite/dist/src/blob/main.js"
		--silent --blobHost 127.0.0.1 --blobPort PORT --disableTelemetry --skipApiVersionCheck)
	mkdir "$dir/azurite" "$dir/azurite-tls"
	serve azurite "${run[@]}" --location "$dir/azurite"
	azure_container "http://127.0.0.1:$port"
	export CUTBANK_TEST_AZURE=azure+http://127.0.0.1:$port/$AZURE_STORAGE_ACCOUNT/test

	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=for tests on loopback" -addext "subjectAltName=IP:127.0.0.1" \
		-keyout "$dir/azurite.key" -out "$dir/azurite.pem" 2>"$dir/openssl.log" || { cat "$dir/openssl.log"; exit 1; }
	serve azurite-tls "${run[@]}" --location "$dir/azurite-tls" --oauth basic --cert "$dir/azurite.pem" --key "$dir/azurite.key"
	NODE_EXTRA_CA_CERTS=$dir/azurite.pem azure_container "https://127.0.0.1:$port"
	export CUTBANK_TEST_AZURE_TLS=azure+https://127.0.0.1:$port/$AZURE_STORAGE_ACCOUNT/test CUTBANK_TEST_AZURE_CA=$dir/azurite.pem
}

# azurite_install installs what its package.json names, without running anything of it.
azurite_install() {
	cp "$services"/azurite/package{,-lock}.json "$1"
	npm ci --prefix "$1" --ignore-scripts --no-audit --no-fund --silent
}

# azure_container SERVER: makes the container "test" there.
azure_container() {
	timeout 60 node --no-warnings - "$1" <<'JS'
const account = process.env.AZURE_STORAGE_ACCOUNT;
const headers = {"x-ms-date": new Date().toUTCString(), "x-ms-version": "2021-12-02"};
const signed = ["PUT", ...Array(11).fill(""), ...Object.entries(headers).map(([k, v]) => `${k}:${v}`), `/${account}/${account}/test`, "restype:container"].join("\n");
const mac = require("crypto").createHmac("sha256", Buffer.from(process.env.AZURE_STORAGE_KEY, "base64")).update(signed).digest("base64");
fetch(`${process.argv[2]}/${account}/test?restype=container`, {method: "PUT", headers: {...headers, Authorization: `SharedKey ${account}:${mac}`}}).then(async r => {
	if (r.status !== 201) throw new Error(`${r.status} ${await r.text()}`);
}).catch(err => { console.error(err); process.exit(1); });
JS
}
