#!/bin/bash
# Makes the root file systems of the conformance images in WORK/rootfs, from
# Debian packages and from the programs in WORK/bin.
# usage: rootfs.sh WORK; needs: apt lists, dpkg-deb, readelf (binutils).
set -euo pipefail
cd "$1"
W=$PWD
S=$W/stage
rm -rf "$S" rootfs; mkdir -p "$S" rootfs apt/archives/partial
: > apt/status
[ -n "$(ls apt/archives/*.deb 2>/dev/null)" ] || apt-get -o Dir::State::status="$W/apt/status" -o Dir::Cache::archives="$W/apt/archives" \
  -o Debug::NoLocking=1 -o APT::Install-Recommends=0 -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
  install --download-only -y curl bind9-dnsutils netcat-openbsd iproute2 bash socat libc-bin nginx

# busybox from Debian's copy of upstream's source. Debian's own build differs in
# what the suite looks at: its shell drops variables whose name is not a
# shell's, and prefers applets to programs of the same name.
if [ ! -e bin/busybox ]; then
  mkdir -p apt/src/lists/partial; . /etc/os-release
  echo "deb-src http://deb.debian.org/debian $VERSION_CODENAME main" > apt/src/sources.list
  src() { (cd apt/src && apt-get -qq -o Dir::Etc::sourcelist="$W/apt/src/sources.list" -o Dir::Etc::sourceparts=- \
    -o Dir::State::lists="$W/apt/src/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root -o Debug::NoLocking=1 "$@"); }
  src update; src source --download-only busybox
  rm -rf apt/src/busybox-*; tar -C apt/src -xf apt/src/busybox_*.orig.tar.*
  ( cd apt/src/busybox-*/; make defconfig; sed -i 's/^# CONFIG_STATIC is not set/CONFIG_STATIC=y/; s/^CONFIG_TC=y/# CONFIG_TC is not set/' .config
    make -j"$(nproc)" busybox ) > apt/src/build.log 2>&1 || { tail apt/src/build.log >&2; exit 1; }
  cp apt/src/busybox-*/busybox bin/busybox
fi
for d in apt/archives/*.deb; do dpkg-deb -x "$d" "$S"; done

# find_lib NAME: path below $S of a shared library.
find_lib() { find "$S"/lib* "$S"/usr/lib -name "$1" 2>/dev/null | head -1; }
# add_elf ROOT PATH [DEST]: copies PATH and every library that it needs.
add_elf() {
  local root=$1 src=$S/$2 dst=$1/${3:-$2} lib p
  mkdir -p "$(dirname "$dst")"; cp -L "$src" "$dst"
  for lib in $(readelf -d "$src" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do add_lib "$root" "$lib"; done
}
add_lib() {
  local root=$1 lib=$2 p l
  [ -e "$root/usr/lib/$lib" ] && return
  # in an upper layer: nothing to do for what the base has
  [ "$root" != "$W/rootfs/base" ] && [ -e "$W/rootfs/base/usr/lib/$lib" ] && return
  p=$(find_lib "$lib"); [ -n "$p" ] || { echo "no $lib" >&2; exit 1; }
  mkdir -p "$root/usr/lib"; cp -L "$p" "$root/usr/lib/$lib"
  for l in $(readelf -d "$p" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do add_lib "$root" "$l"; done
}
skeleton() {
  local r=$1
  mkdir -p "$r"/{bin,sbin,usr/bin,usr/sbin,usr/local/bin,usr/local/sbin,etc,home,root,var/log,var/run,tmp,proc,sys,dev,run}
  chmod 1777 "$r/tmp"; chmod 700 "$r/root"
  printf 'root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nbin:x:2:2:bin:/bin:/bin/false\nmail:x:8:8:mail:/var/spool/mail:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnginx:x:101:101:nginx:/var/cache/nginx:/bin/false\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n' > "$r/etc/passwd"
  printf 'root:x:0:\ndaemon:x:1:\nbin:x:2:\ntty:x:5:\nmail:x:8:\nwww-data:x:33:\nnginx:x:101:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\nnogroup:x:65534:\n' > "$r/etc/group"
  printf 'hosts: files dns\npasswd: files\ngroup: files\nservices: files\nprotocols: files\n' > "$r/etc/nsswitch.conf"
  cp "$W/bin/busybox" "$r/bin/busybox"
}
# applets ROOT: a link for each busybox applet that no real program in ROOT has.
applets() {
  local r=$1 p
  for p in $("$W/bin/busybox" --list-full); do
    [ -e "$r/$p" ] || [ -e "$r/usr/bin/$(basename "$p")" ] || [ -e "$r/bin/$(basename "$p")" ] || { mkdir -p "$r/$(dirname "$p")"; ln -s /bin/busybox "$r/$p"; }
  done
}

# busybox: static, every applet in /bin as in upstream's image.
skeleton "$W/rootfs/busybox"
for p in $("$W/bin/busybox" --list); do [ "$p" = busybox ] || ln -s busybox "$W/rootfs/busybox/bin/$p"; done

# base: glibc, shell and the network tools that agnhost's Alpine base installs.
B=$W/rootfs/base
skeleton "$B"
mkdir -p "$B/lib64" "$B/usr/lib"
cp -L "$(find_lib ld-linux-x86-64.so.2)" "$B/lib64/"
for b in bin/bash usr/bin/curl usr/bin/dig usr/bin/nslookup usr/bin/socat usr/bin/getent; do add_elf "$B" $b; done
add_elf "$B" bin/nc.openbsd bin/nc
add_elf "$B" bin/ip; add_elf "$B" bin/ss
for l in libnss_files.so.2 libnss_dns.so.2 libresolv.so.2; do add_lib "$B" $l; done
ln -s lib "$B/usr/lib64" ; ln -s usr/lib "$B/lib"
mkdir -p "$B/etc/ld.so.conf.d"; printf '/usr/lib\n' > "$B/etc/ld.so.conf"
ldconfig -r "$B"
applets "$B"

# nginx: Debian's nginx with the paths and the foreground command of upstream's image.
N=$W/rootfs/nginx
mkdir -p "$N"/{usr/sbin,usr/share/nginx/html,etc/nginx/conf.d,var/log/nginx,var/cache/nginx,run,docker-entrypoint.d}
add_elf "$N" usr/sbin/nginx
cp "$S/etc/nginx/mime.types" "$N/etc/nginx/"
cat > "$N/etc/nginx/nginx.conf" <<'C'
user nginx;
worker_processes 1;
error_log /var/log/nginx/error.log notice;
pid /run/nginx.pid;
events { worker_connections 1024; }
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /var/log/nginx/access.log;
    sendfile on;
    keepalive_timeout 65;
    client_body_temp_path /var/cache/nginx/client;
    proxy_temp_path /var/cache/nginx/proxy;
    fastcgi_temp_path /var/cache/nginx/fastcgi;
    uwsgi_temp_path /var/cache/nginx/uwsgi;
    scgi_temp_path /var/cache/nginx/scgi;
    include /etc/nginx/conf.d/*.conf;
}
C
cat > "$N/etc/nginx/conf.d/default.conf" <<'C'
server {
    listen 80;
    listen [::]:80;
    server_name localhost;
    location / { root /usr/share/nginx/html; index index.html index.htm; }
    error_page 500 502 503 504 /50x.html;
    location = /50x.html { root /usr/share/nginx/html; }
}
C
printf '<!DOCTYPE html>\n<html>\n<head><title>Welcome to nginx!</title></head>\n<body><h1>Welcome to nginx!</h1></body>\n</html>\n' > "$N/usr/share/nginx/html/index.html"
printf '<html><body>error</body></html>\n' > "$N/usr/share/nginx/html/50x.html"
ln -s /dev/stdout "$N/var/log/nginx/access.log"; ln -s /dev/stderr "$N/var/log/nginx/error.log"
printf '#!/bin/sh\nset -e\nexec "$@"\n' > "$N/docker-entrypoint.sh"; chmod 755 "$N/docker-entrypoint.sh"
ldconfig -r "$B" >/dev/null

# one layer for each program of the suite
put() { mkdir -p "$W/rootfs/$1/$(dirname "$3")"; cp "$W/bin/$2" "$W/rootfs/$1/$3"; chmod "$4" "$W/rootfs/$1/$3"; }
put agnhost agnhost agnhost 755; ln -s agnhost rootfs/agnhost/agnhost-2; mkdir -p rootfs/agnhost/uploads
cp images-src/porter/localhost.crt images-src/porter/localhost.key rootfs/agnhost/ 2>/dev/null || true
put pause pause pause 755
put nonewprivs nnp usr/local/bin/nnp 6755
put sample-apiserver sample-apiserver sample-apiserver 755
put etcd etcd usr/local/bin/etcd 755
for i in nautilus kitten; do mkdir -p rootfs/$i; printf '{\n  "image": "%s.jpg"\n}\n' $i > rootfs/$i/data.json; printf '\377\330\377\331' > rootfs/$i/$i.jpg; mkdir -p rootfs/$i/etc; printf 'NAME="Alpine Linux"\nID=stand-in\n' > rootfs/$i/etc/os-release; done
du -sh rootfs/*
