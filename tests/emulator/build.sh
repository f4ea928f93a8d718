#!/usr/bin/env bash
# build.sh FOLDER: gets and builds what check_avx512.py runs, into FOLDER:
#
#   bochs      the emulator Bochs, from Debian's source package, without windows, disks and buses
#   vmlinuz    Debian's kernel for virtual machines
#   busybox    its static shell
#   boot.rom   boot.S beside this script
#
# All are of Debian 13, whatever this system is: its Bochs (3.0) has been tried, and its kernel (6.12)
# starts there, which that of Debian 12 (6.1) does not.  apt has its lists in FOLDER: the system's stay
# as they are.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/apt/lists/partial" "$1/apt/cache/archives/partial" "$1/apt/parts" "$1/packages"
cd "$1"
folder=$PWD
release=trixie

# The archive that this system's own packages come from.
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
: "${archive:?run apt-get update first}"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $archive $release main" >apt/parts/debian.list
echo "deb-src [signed-by=$keys] $archive $release main" >>apt/parts/debian.list
cat >apt/apt.conf <<END
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "$folder/apt/parts";
Dir::State::Lists "$folder/apt/lists";
Dir::Cache "$folder/apt/cache";
APT::Sandbox::User "root";
END
export APT_CONFIG=$folder/apt/apt.conf

cd packages
apt-get update
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p')
apt-get download "$kernel" busybox-static
apt-get source --tar-only --download-only bochs
for package in *.deb; do
  dpkg-deb --extract "$package" files
done
cp files/boot/vmlinuz-* ../vmlinuz
cp files/usr/bin/busybox ../busybox
mkdir -p bochs
tar -xf bochs_*.orig.tar.* -C bochs --strip-components=1

gcc -c "$here/boot.S" -o boot.o
objcopy --output-target=binary --only-section=.text boot.o ../boot.rom

python3 "$here/mend_bochs.py" bochs
cd bochs
./configure --enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex --enable-amx --enable-all-optimizations \
  --disable-vmx --disable-smp --disable-pci --disable-cdrom --disable-plugins --disable-show-ips \
  --disable-docbook --disable-xpm --with-nogui CFLAGS=-O2 CXXFLAGS=-O2
make -j "$(nproc)" bochs
cp bochs ../../bochs.new
mv ../../bochs.new ../../bochs
