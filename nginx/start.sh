#!/bin/sh
# Fills in what nginx.conf leaves open, and starts NGINX with it:  start.sh          (in the foreground)
# After a change of files here, of a setting or of a certificate:  start.sh reload   (no request is lost)
# Only check them:                                                 start.sh check
set -eu
# Where Debian has it, which is not in everybody's PATH.
PATH="$PATH:/usr/sbin"

# Where the filled-in configuration, temporary files and the process id go; where certificates are; the API's socket.
: "${EDGE_RUN_DIR:=/var/cache/nginx}" "${EDGE_TLS_DIR:=/etc/tiercel/tls}" "${EDGE_API_SOCKET:=/run/tiercel/api.sock}"
# What to listen on, and the port that clients see.
: "${EDGE_HTTPS_LISTEN:=8443}" "${EDGE_HTTP_LISTEN:=8080}" "${EDGE_STATUS_LISTEN:=8081}" "${EDGE_HTTPS_PORT:=8443}"
# Limits for one client address, and those that are the API's.
: "${EDGE_REQUESTS_PER_SECOND:=500}" "${EDGE_CONNECTIONS:=100}"
: "${TIERCEL_MAX_BODY_BYTES:=8388608}" "${TIERCEL_MAX_JOB_BYTES:=33554432}"
: "${TIERCEL_REQUEST_TIMEOUT_MS:=5000}" "${TIERCEL_HANG_GRACE_MS:=1000}"
# Of the requests that bring no trace of their own, the share of those whose spans are kept.
: "${TIERCEL_TRACE_RATIO:=0.01}"
# What access_log.conf counts on.
export TZ=UTC

# at_least A.B WANTED: whether version A.B is WANTED or later
at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

about=$(nginx -V 2>&1)
nginx_version=$(echo "$about" | sed -n 's,^nginx version: nginx/\([0-9.]*\).*,\1,p')
openssl_version=$(echo "$about" | sed -n 's,.*OpenSSL \([0-9.]*\).*,\1,p')
if at_least "$nginx_version" 1.25.1; then http2="http2 on;" http2_of_listen=""; else http2="" http2_of_listen=" http2"; fi
curves=X25519:prime256v1:secp384r1
if at_least "$openssl_version" 3.5; then curves="X25519MLKEM768:$curves"; fi
# At a reload NGINX closes idle connections, and a client may be about to use one: later versions wait for it.
if at_least "$nginx_version" 1.27.4; then min_timeout="keepalive_min_timeout 10s;"; else min_timeout=""; fi
# Whoever started this owns the API's socket: root's workers would otherwise be somebody else.
if [ "$(id -u)" = 0 ]; then user="user root;"; else user=""; fi

if ! echo "$TIERCEL_TRACE_RATIO" | grep -Eqx '0|1|1\.0+|0?\.[0-9]+'; then
    echo "start.sh: TIERCEL_TRACE_RATIO: expected a number from 0 to 1, got $TIERCEL_TRACE_RATIO" >&2
    exit 1
fi
# NGINX takes per cent with two decimals, and none is not among them.
trace_share=$(awk -v ratio="$TIERCEL_TRACE_RATIO" 'BEGIN { share = sprintf("%.2f", ratio * 100); if (share + 0) print share "%    01;" }')

fill() {
    printf 's|${%s}|%s|g\n' "$1" "$2"
}
values=$(
    fill USER "$user"
    fill HTTPS_LISTEN "$EDGE_HTTPS_LISTEN"
    fill HTTP_LISTEN "$EDGE_HTTP_LISTEN"
    fill STATUS_LISTEN "$EDGE_STATUS_LISTEN"
    fill HTTPS_PORT "$EDGE_HTTPS_PORT"
    fill HTTP2 "$http2"
    fill HTTP2_OF_LISTEN "$http2_of_listen"
    fill KEEPALIVE_MIN_TIMEOUT "$min_timeout"
    fill TLS_DIR "$EDGE_TLS_DIR"
    fill TLS_CURVES "$curves"
    fill API_SOCKET "$EDGE_API_SOCKET"
    fill REQUESTS_PER_SECOND "$EDGE_REQUESTS_PER_SECOND"
    fill CONNECTIONS "$EDGE_CONNECTIONS"
    fill MAX_BODY_BYTES "$TIERCEL_MAX_BODY_BYTES"
    fill MAX_JOB_BYTES "$TIERCEL_MAX_JOB_BYTES"
    fill TRACE_SHARE "$trace_share"
    fill READ_TIMEOUT_MS $((TIERCEL_REQUEST_TIMEOUT_MS + TIERCEL_HANG_GRACE_MS + 5000))
)

here=$(dirname "$0")
mkdir -p "$EDGE_RUN_DIR/snippets" "$EDGE_RUN_DIR/temp"
for file in "$here"/nginx.conf "$here"/snippets/*.conf; do
    sed -e "$values" "$file" > "$EDGE_RUN_DIR/${file#"$here"/}"
done

# When the certificate ends that NGINX is about to load, for Prometheus (/certificate of the status port). A machine whose
# `date` does not read dates goes without.
tell_end_of_certificate() {
    rm -f "$EDGE_RUN_DIR/certificate"
    end=$(openssl x509 -noout -enddate -in "$EDGE_TLS_DIR/server.crt") || return 0
    seconds=$(date -d "${end#*=}" +%s) || return 0
    printf '# TYPE %s gauge\n%s %s\n' \
        tiercel_certificate_not_after_seconds tiercel_certificate_not_after_seconds "$seconds" > "$EDGE_RUN_DIR/certificate"
}

run() {
    nginx -e stderr -p "$EDGE_RUN_DIR" -c "$EDGE_RUN_DIR/nginx.conf" "$@"
}
case ${1:-start} in
    start) tell_end_of_certificate; exec nginx -e stderr -p "$EDGE_RUN_DIR" -c "$EDGE_RUN_DIR/nginx.conf" -g "daemon off;" ;;
    reload) run -t -q && tell_end_of_certificate && run -s reload ;;
    check) run -t ;;
    *) echo "start.sh: expected start, reload or check, got $1" >&2; exit 2 ;;
esac
