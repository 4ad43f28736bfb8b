/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* The part of the kernel's interface to eBPF programs that is used here, so that compiling needs no headers of a kernel. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
/* The compiler knows nothing about the value, and makes no branch of a calculation with it. */
#define OPAQUE(value) asm volatile("" : "+r"(value))
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)

/* The program sees its packet through it. Only offsets matter: the kernel rewrites each access. */
struct __sk_buff {
	u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority, ingress_ifindex;
	u32 ifindex, tc_index, cb[5], hash, tc_classid, data, data_end;
};

struct bpf_tunnel_key {
	u32 tunnel_id;
	u32 remote_ipv4, remote_rest[3];
	u8 tunnel_tos, tunnel_ttl;
	u16 tunnel_ext;
	u32 tunnel_label;
	/* From Linux 6.0. */
	u32 local_ipv4, local_rest[3];
};

#define TC_ACT_UNSPEC -1
#define TC_ACT_SHOT 2
#define TC_ACT_STOLEN 4

#define BPF_NOEXIST 1
#define BPF_F_ZERO_CSUM_TX (1ULL << 1)
#define BPF_F_DONT_FRAGMENT (1ULL << 2)
#define BPF_RB_AVAIL_DATA 0
#define BPF_RB_NO_WAKEUP 1
#define BPF_RB_FORCE_WAKEUP 2

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static u64 (*const ktime_get_ns)(void) = (void *)5;
static long (*const skb_store_bytes)(struct __sk_buff *skb, u32 offset, const void *from, u32 len, u64 flags) = (void *)9;
static long (*const clone_redirect)(struct __sk_buff *skb, u32 ifindex, u64 flags) = (void *)13;
static long (*const skb_vlan_push)(struct __sk_buff *skb, u16 protocol, u16 tci) = (void *)18;
static long (*const skb_get_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, u32 size, u64 flags) = (void *)20;
static long (*const skb_set_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, u32 size, u64 flags) = (void *)21;
static long (*const redirect)(u32 ifindex, u64 flags) = (void *)23;
static long (*const skb_load_bytes)(const struct __sk_buff *skb, u32 offset, void *to, u32 len) = (void *)26;
/* From Linux 5.10. */
static long (*const redirect_peer)(u32 ifindex, u64 flags) = (void *)155;
static long (*const ringbuf_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;
static u64 (*const ringbuf_query)(void *ring, u64 what) = (void *)134;
