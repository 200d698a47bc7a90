#!/usr/bin/env bash
# The demo: one device with its data in DIR, running examples/hello.yaml.
# usage: demo.sh start|stop DIR   (as root; after `make build`)
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
action=${1:?start or stop} dir=${2:?folder}
edged=$top/bin/edged
folders=(--config /dev/null --data-dir "$dir/data" --run-dir "$dir/run")
export KUBECONFIG=$dir/data/admin.kubeconfig
kubectl=$(command -v kubectl || true)
[ -n "$kubectl" ] || kubectl=$top/bin/kubectl

step() { printf '%-46s' "$1"; shift; "$@" >"$dir/step.log" 2>&1 || { echo "failed"; cat "$dir/step.log"; tail -n 20 "$dir/edged.log" >&2; exit 1; }; echo ok; }

device_pid() { cat "$dir/pid" 2>/dev/null || true; }
running() { local p; p=$(device_pid); [ -n "$p" ] && [ "$(readlink "/proc/$p/exe" 2>/dev/null)" = "$edged" ]; }

stop() {
  if running; then
    local p; p=$(device_pid)
    kill "$p"
    for _ in $(seq 300); do running || break; sleep 0.1; done
  fi
  if [ -x "$edged" ] && [ -d "$dir/data" ]; then "$edged" reset "${folders[@]}"; fi
  rm -rf "$dir"
}

image() {
  mkdir -p "$dir/image/root"
  (cd "$top" && go build -ldflags '-s -w' -o "$dir/image/root/hello" ./examples/hello
   sed "s/ARCH/$(go env GOARCH)/" examples/hello/image.json > "$dir/image/image.json"
   go run ./test/mkimage -spec "$dir/image/image.json" -out "$dir/image/hello.tar")
}

ready() {
  for _ in $(seq 600); do
    running || return 1
    "$kubectl" get --raw /readyz && return 0
    sleep 0.1
  done
  return 1
}

answer() {
  local ip; ip=$("$kubectl" get service hello -o jsonpath='{.spec.clusterIP}')
  for _ in $(seq 50); do
    curl -fsS --noproxy '*' --max-time 2 "http://$ip/" && return 0
    sleep 0.1
  done
  return 1
}

start() {
  [ "$(id -u)" = 0 ] || { echo "the demo needs root: it makes containers, links and rules" >&2; exit 1; }
  if running; then echo "the demo is running already; make demo-stop ends it" >&2; exit 1; fi
  mkdir -p "$dir"
  step "building an image of examples/hello" image
  mkdir -p "$dir/run"
  setsid "$edged" run "${folders[@]}" >>"$dir/edged.log" 2>&1 </dev/null &
  echo $! > "$dir/pid"
  step "starting a device with its data in ${dir#"$PWD"/}" ready
  step "importing the image" "$edged" image import "${folders[@]}" "$dir/image/hello.tar"
  step "waiting for the device to be Ready" "$kubectl" wait --for=condition=Ready node --all --timeout=60s
  step "applying examples/hello.yaml" "$kubectl" apply -f "$top/examples/hello.yaml"
  step "waiting for the Deployment's Pods" "$kubectl" rollout status deployment/hello --timeout=120s
  step "asking the Service's address" answer
  echo; cat "$dir/step.log"; echo
  "$kubectl" get nodes,pods,svc -o wide
  cat <<TEXT

Go on with:
  export KUBECONFIG=${KUBECONFIG}
  $kubectl get pods -A
  $kubectl logs -f deployment/hello
End it with: make demo-stop
TEXT
}

case $action in
  start) start ;;
  stop) stop ;;
  *) echo "demo.sh: unknown action $action" >&2; exit 2 ;;
esac
