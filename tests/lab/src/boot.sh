# Process 1 of a host with systemd. It makes the machine's files read-only, hides them or replaces them by copies, and becomes systemd.
# It runs in mount, pid and control group namespaces of its own. Arguments: the programs `weave` and `lab`.
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /mnt
root=/mnt/root
mkdir $root
# Not recursive: other file systems of the machine are not visible.
mount --bind / $root
mount -o remount,bind,ro $root
for d in /run /tmp /var/tmp /var/cache /dev; do mount -t tmpfs -o mode=755 tmpfs $root$d; done
chmod 1777 $root/tmp $root/var/tmp
mkdir $root/run/lock $root/dev/net $root/dev/pts $root/dev/shm
# Programs can be anywhere, also in a folder that is hidden here.
mount -t tmpfs -o mode=755 tmpfs $root/usr/local/bin
for name in weave lab; do
  : > $root/usr/local/bin/$name
  mount --bind "$1" $root/usr/local/bin/$name
  shift
done
# The disk of the host.
for d in /etc /var/lib /var/log; do mount --bind $d $root$d; done
mount -t proc proc $root/proc
mount --bind $root/proc/sys $root/proc/sys
mount -o remount,bind,ro $root/proc/sys
mount --bind $root/proc/sys/net $root/proc/sys/net
mount -o remount,bind,rw $root/proc/sys/net
# systemd needs no udev if /sys is read-only.
mount -t sysfs -o ro sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
for n in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0" "net/tun 10 200"; do
  set -- $n
  mknod -m 666 $root/dev/$1 c $2 $3
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
ln -s /proc/self/fd $root/dev/fd
if [ -e $root/proc/sysrq-trigger ]; then mount --bind $root/dev/null $root/proc/sysrq-trigger; fi

# No services of the machine, and none of systemd's that set up hardware.
units=$root/etc/systemd/system
if [ ! -e $units/.of-the-lab ]; then
  rm -rf $units
  mkdir -p $units
  : > $units/.of-the-lab
  for u in systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service systemd-tmpfiles-setup-dev-early.service \
    systemd-tmpfiles-clean.timer systemd-sysctl.service systemd-modules-load.service systemd-remount-fs.service \
    systemd-binfmt.service systemd-sysusers.service systemd-udevd.service systemd-udev-trigger.service \
    systemd-random-seed.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    systemd-machine-id-commit.service systemd-firstboot.service systemd-timesyncd.service systemd-logind.service \
    systemd-networkd-wait-online.service systemd-oomd.service ldconfig.service console-getty.service getty.target \
    proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    sys-kernel-config.mount sys-fs-fuse-connections.mount systemd-ask-password-wall.path \
    systemd-ask-password-console.path; do
    ln -s /dev/null $units/$u
  done
fi
cd $root
pivot_root . mnt
umount -l /mnt
mount --make-rshared /
exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --unit=multi-user.target --log-target=journal --show-status=no < /dev/null > /dev/null 2>&1
