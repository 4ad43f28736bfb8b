/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * The kernel path of fastdp (docs/spec/data-plane.md, Appendix A): `uplink` decides about frames from the local bridge, `tunnel` about
 * frames from peers. Their decisions equal `weave_switch::local_frame` and `weave_switch::peer_frame`, which `test` is compared with.
 * `port` lets frames of containers bypass the bridge where bridge and `uplink` would do with them what they did before.
 *
 * `make bpf` compiles it; the object is committed. The structures are those of ../src/layout.rs.
 */
#include "kernel.h"

char licence[] SECTION("license") = "Dual BSD/GPL";

/* Maps, made by ../src/maps.rs, which also replaces these addresses. */
struct map;
/* One entry, `struct globals`. */
extern struct map globals;
/* One entry, an array of one `struct tables`: replaced as a whole, so that a frame sees either old or new routes. */
extern struct map tables;
/* Hash: MAC -> `struct mac_entry`. */
extern struct map macs;
/* Per-CPU array: `enum counter` -> `struct count`. */
extern struct map counters;
/* Array: short id -> `struct limits`. */
extern struct map limits;
/* Per-CPU array: short id of a neighbour -> `struct traffic`. */
extern struct map traffic;
/* Hash: `struct remote` -> short id of the neighbour. */
extern struct map remotes;
/* Hash: MAC -> `struct port`. */
extern struct map ports;
/* Ring buffer: `struct mac_event` and `struct control_frame`. */
extern struct map events;

#define IDS 4096
#define MAX_BROADCAST 255
#define BROADCAST_POOL 65536

struct globals {
	u32 magic, version;
	/* Bytes of a tunnel key that has a local address, more than of one that has none. */
	u32 local_address;
	u32 pad;
	/* When an own frame that came back was reported. */
	u64 own_packet_reported;
};

enum kind { KIND_UNKNOWN, KIND_NONE, KIND_KERNEL, KIND_USER };

struct peer {
	u8 kind;
	/* Whether user space forwards broadcasts of this peer as well. */
	u8 broadcast_user;
	/* The next hop, an index of `neighbours`. */
	u16 next;
	/* The next hops of its broadcasts: `count` entries of `broadcast` from `first`, without `except`. */
	u16 first, count, except;
	u16 pad;
};

struct neighbour {
	/* Host byte order. */
	u32 remote, local;
	u32 ifindex;
	u16 id;
	u16 pad;
};

struct tables {
	u64 generation;
	u64 hold_down, conflict_interval;
	u32 uplink, tap, relay_tap;
	u16 own;
	u16 pad;
	struct peer peers[IDS];
	struct neighbour neighbours[IDS];
	u16 broadcast[BROADCAST_POOL];
};

struct mac_entry {
	u64 last_seen;
	/* When the program learnt it; 0 if user space wrote it. */
	u64 learnt;
	/* When the latest event was sent. */
	u64 reported;
	/* When a conflicting frame passed, or the first one was refused; 0 before. */
	u64 conflict;
	u32 refused;
	u16 peer;
	/* User space has not confirmed it. */
	u8 pending;
	u8 pad;
};

struct count {
	u64 packets, bytes;
};

/* When the latest event of a kind was sent. */
struct limits {
	u64 control, traffic, flood;
};

/* `weave_overlay::TrafficCounts`. */
struct traffic {
	u32 sent, received, heard, pad;
};

/* Where packets of a neighbour come from. */
struct remote {
	u32 address, ifindex;
};

/* The port of the bridge behind which a MAC is. */
struct port {
	u32 ifindex;
	u32 pad;
	/* When a frame from there last passed the bridge. */
	u64 bridged;
};

enum counter {
	/* `weave_switch::DropReason`. */
	DROP_TOO_SHORT,
	DROP_INVALID_SOURCE,
	DROP_SPANNING_TREE,
	DROP_DESTINATION_LOCAL,
	DROP_LOCAL_CONFLICT,
	DROP_NO_ROUTE,
	DROP_OWN_PACKET,
	DROP_UNKNOWN_PEER,
	DROP_HAIRPIN,
	DROP_NO_TABLES,
	DROP_NO_KEY,
	DROP_SEND,
	DROP_HOPS,
	UNICAST,
	FLOODED,
	COPIES,
	RELAYED,
	DELIVERED,
	TO_USER,
	RELAYED_TO_USER,
	CONTROL,
	CONTROL_SUPPRESSED,
	ANSWERED,
	EVENTS_LOST,
	MACS_FULL,
};

enum event_kind { EVENT_LOCAL_MAC = 1, EVENT_REMOTE_MAC, EVENT_LOCAL_CONFLICT, EVENT_OWN_PACKET, EVENT_CONTROL, EVENT_TRAFFIC, EVENT_FLOOD };

struct mac_event {
	u32 kind;
	/* A short id. */
	u16 peer;
	/* Whether the MAC was known. */
	u16 known;
	u64 last_seen;
	u64 generation;
	u64 mac, destination;
};

struct control_frame {
	u32 kind;
	u32 vni;
	/* Host byte order. */
	u32 remote;
	u32 ifindex;
	u32 len;
	u32 pad;
	u8 head[64];
};

#define REPORT_INTERVAL 1000000000ULL
#define OWN_PACKET_INTERVAL 100000000ULL
#define CONTROL_INTERVAL 1000000ULL
/*
 * A heartbeat that follows another control frame of the same peer within this time wakes up nobody: user space reads it with its own timers.
 * All other events do so explicitly, since the kernel would wake up a reader only if it has read everything before.
 */
#define QUIET_INTERVAL 6000000000ULL
#define TRAFFIC_INTERVAL 1000000000ULL
#define TOUCH_INTERVAL 100000000ULL
/* A frame in this time passes the bridge, which forgets a MAC after 300 s unless told otherwise. */
#define BRIDGED_INTERVAL 20000000000ULL
/* A device may be gone, or have another MAC. */
#define PORT_LIFETIME (2 * BRIDGED_INTERVAL)
/* Events of MACs leave the last quarter of the ring to control frames. */
#define EVENTS_SIZE (256 << 10)
#define EVENTS_LIMIT (EVENTS_SIZE / 4 * 3)

/* MACs are numbers whose lowest byte is the first on the wire. */
#define SPANNING_TREE 0x000000c28001ULL
#define IS_GROUP(mac) ((mac) & 1)
#define IS_LEARNABLE(mac) ((mac) != 0 && !IS_GROUP(mac))

INLINE struct globals *get_globals(void)
{
	u32 zero = 0;
	return map_lookup(&globals, &zero);
}

INLINE struct tables *get_tables(void)
{
	u32 zero = 0;
	void *current = map_lookup(&tables, &zero);
	return current ? map_lookup(current, &zero) : 0;
}

INLINE void count(u32 counter, u32 packets, u64 bytes)
{
	struct count *c = map_lookup(&counters, &counter);
	if (c) {
		c->packets += packets;
		c->bytes += bytes;
	}
}

/* Clocks of processors may differ slightly. */
INLINE u64 since(u64 now, u64 then)
{
	return now > then ? now - then : 0;
}

INLINE void report(const struct tables *t, u32 kind, u16 peer, u64 mac, u64 destination, const struct mac_entry *known)
{
	struct mac_event event = { .kind = kind, .peer = peer, .generation = t->generation, .mac = mac, .destination = destination };
	if (known) {
		event.known = 1;
		event.last_seen = known->last_seen;
	}
	if (ringbuf_query(&events, BPF_RB_AVAIL_DATA) > EVENTS_LIMIT || ringbuf_output(&events, &event, sizeof(event), BPF_RB_FORCE_WAKEUP))
		count(EVENTS_LOST, 1, 0);
}

INLINE void report_known(const struct tables *t, u32 kind, u16 peer, u64 mac, struct mac_entry *entry, u64 now)
{
	if (since(now, entry->reported) >= REPORT_INTERVAL) {
		entry->reported = now;
		report(t, kind, peer, mac, 0, entry);
	}
}

INLINE void learn(const struct tables *t, u32 kind, u16 peer, u64 mac, u64 now)
{
	struct mac_entry entry = { .last_seen = now, .learnt = now, .reported = now, .peer = peer, .pending = 1 };
	if (map_update(&macs, &mac, &entry, BPF_NOEXIST))
		/* User space does not hear of it: it has more to do than it can already. */
		return count(MACS_FULL, 1, 0);
	report(t, kind, peer, mac, 0, 0);
}

INLINE void move(const struct tables *t, u32 kind, u16 peer, u64 mac, struct mac_entry *entry, u64 now)
{
	report(t, kind, peer, mac, 0, entry);
	entry->peer = peer;
	entry->last_seen = now;
	entry->learnt = now;
	entry->reported = now;
	entry->conflict = 0;
	entry->pending = 1;
}

INLINE void touch(const struct tables *t, u32 kind, u64 mac, struct mac_entry *entry, u64 now)
{
	if (UNLIKELY(entry->pending))
		report_known(t, kind, entry->peer, mac, entry, now);
	/* A store per frame would move the cache line between processors. */
	if (since(now, entry->last_seen) >= TOUCH_INTERVAL)
		entry->last_seen = now;
}

/* Data moves between this peer and a neighbour. */
INLINE void report_traffic(const struct tables *t, u32 id, struct limits *limit, u64 now)
{
	limit->traffic = now;
	report(t, EVENT_TRAFFIC, id, 0, 0, 0);
}

INLINE void note_sent(const struct tables *t, u32 id, u64 now)
{
	struct traffic *counts = map_lookup(&traffic, &id);
	struct limits *limit = map_lookup(&limits, &id);
	if (!counts || !limit)
		return;
	counts->sent++;
	if (UNLIKELY(since(now, limit->traffic) >= TRAFFIC_INTERVAL))
		report_traffic(t, id, limit, now);
}

/* A packet has arrived whose frame comes from peer `from`, maybe by another neighbour. */
INLINE void note_received(struct tables *t, u32 from, u32 address, u32 ifindex, int is_data, u64 now)
{
	const struct peer *peer = &t->peers[from & (IDS - 1)];
	const struct neighbour *n = &t->neighbours[peer->next & (IDS - 1)];
	u32 id = n->id;
	if (UNLIKELY(peer->kind != KIND_KERNEL || n->remote != address || n->ifindex != ifindex)) {
		struct remote remote = { address, ifindex };
		u32 *found = map_lookup(&remotes, &remote);
		if (!found)
			return;
		id = *found;
	}
	struct traffic *counts = map_lookup(&traffic, &id);
	struct limits *limit = map_lookup(&limits, &id);
	if (!counts || !limit)
		return;
	counts->heard++;
	if (!is_data)
		return;
	counts->received++;
	if (UNLIKELY(since(now, limit->traffic) >= TRAFFIC_INTERVAL))
		report_traffic(t, id, limit, now);
}

/* Whether a local frame passes although another peer uses its source (`Activity::passes_despite_conflict`). */
INLINE int passes_despite_conflict(const struct tables *t, struct mac_entry *entry, u64 now)
{
	u64 previous = entry->conflict;
	int due = previous == 0 || since(now, previous) >= t->conflict_interval;
	if (due)
		entry->conflict = now ? now : 1;
	if (due && previous != 0)
		return 1;
	entry->refused++;
	return 0;
}

enum action {
	ACTION_DROP,
	/* To `neighbour`, for `peer`. */
	ACTION_UNICAST,
	ACTION_USER,
	/* To the neighbours in the broadcast tree of `peer`. */
	ACTION_FLOOD,
	ACTION_RELAY,
	ACTION_RELAY_USER,
	ACTION_DELIVER,
	ACTION_DELIVER_FLOOD,
};

struct verdict {
	u32 action;
	/* With ACTION_DROP. */
	u32 reason;
	u32 peer;
	u32 neighbour;
};

INLINE void drop(struct verdict *v, u32 reason)
{
	v->action = ACTION_DROP;
	v->reason = reason;
}

/* `weave_switch::local_frame`. */
INLINE void decide_local(struct tables *t, u64 source, u64 destination, u64 now, struct verdict *v)
{
	u16 own = t->own;
	if (UNLIKELY(!IS_LEARNABLE(source)))
		return drop(v, DROP_INVALID_SOURCE);
	struct mac_entry *entry = map_lookup(&macs, &source);
	if (UNLIKELY(!entry)) {
		learn(t, EVENT_LOCAL_MAC, own, source, now);
	} else if (entry->peer == own) {
		touch(t, EVENT_LOCAL_MAC, source, entry, now);
	} else if (since(now, entry->last_seen) < t->hold_down) {
		report_known(t, EVENT_LOCAL_CONFLICT, entry->peer, source, entry, now);
		if (!passes_despite_conflict(t, entry, now))
			return drop(v, DROP_LOCAL_CONFLICT);
	} else {
		move(t, EVENT_LOCAL_MAC, own, source, entry, now);
	}
	if (destination == SPANNING_TREE)
		return drop(v, DROP_SPANNING_TREE);
	if (destination == source)
		return drop(v, DROP_DESTINATION_LOCAL);
	struct mac_entry *to = IS_GROUP(destination) ? 0 : map_lookup(&macs, &destination);
	if (!to) {
		v->action = ACTION_FLOOD;
		v->peer = own;
		return;
	}
	u32 id = to->peer & (IDS - 1);
	if (id == own)
		return drop(v, DROP_DESTINATION_LOCAL);
	struct peer *peer = &t->peers[id];
	v->peer = id;
	v->neighbour = peer->next & (IDS - 1);
	switch (peer->kind) {
	case KIND_KERNEL:
		v->action = ACTION_UNICAST;
		return;
	case KIND_USER:
		v->action = ACTION_USER;
		return;
	default:
		return drop(v, DROP_NO_ROUTE);
	}
}

/* `weave_switch::peer_frame`. */
INLINE void decide_peer(struct tables *t, u32 from, u32 to, u64 source, u64 destination, u64 now, struct verdict *v)
{
	from &= IDS - 1;
	to &= IDS - 1;
	if (UNLIKELY(from == t->own)) {
		struct globals *g = get_globals();
		if (g && since(now, g->own_packet_reported) >= OWN_PACKET_INTERVAL) {
			g->own_packet_reported = now;
			report(t, EVENT_OWN_PACKET, to, source, destination, 0);
		}
		return drop(v, DROP_OWN_PACKET);
	}
	struct peer *peer = &t->peers[from];
	if (UNLIKELY(peer->kind == KIND_UNKNOWN))
		return drop(v, DROP_UNKNOWN_PEER);
	if (to != t->own) {
		struct peer *next = &t->peers[to];
		v->peer = to;
		v->neighbour = next->next & (IDS - 1);
		switch (next->kind) {
		case KIND_KERNEL:
			v->action = ACTION_RELAY;
			return;
		case KIND_USER:
			v->action = ACTION_RELAY_USER;
			return;
		case KIND_NONE:
			return drop(v, DROP_NO_ROUTE);
		default:
			return drop(v, DROP_UNKNOWN_PEER);
		}
	}
	if (UNLIKELY(!IS_LEARNABLE(source)))
		return drop(v, DROP_INVALID_SOURCE);
	struct mac_entry *entry = map_lookup(&macs, &source);
	if (UNLIKELY(!entry))
		learn(t, EVENT_REMOTE_MAC, from, source, now);
	else if (entry->peer == from)
		touch(t, EVENT_REMOTE_MAC, source, entry, now);
	else if (entry->peer == t->own && since(now, entry->last_seen) < t->hold_down)
		report_known(t, EVENT_REMOTE_MAC, from, source, entry, now);
	else
		move(t, EVENT_REMOTE_MAC, from, source, entry, now);
	v->peer = from;
	v->action = ACTION_DELIVER;
	/* If the source itself is the destination, it has just moved to `from`. */
	struct mac_entry *at = IS_GROUP(destination) || destination == source ? 0 : map_lookup(&macs, &destination);
	if ((!at || at->peer != t->own) && (peer->count || peer->broadcast_user))
		v->action = ACTION_DELIVER_FLOOD;
}

/* Reads both MACs. 0 if the frame is too short. */
INLINE int load_macs(struct __sk_buff *skb, u64 *destination, u64 *source)
{
	u8 *data = (u8 *)(long)skb->data;
	if (UNLIKELY(data + 14 > (u8 *)(long)skb->data_end)) {
		u64 copy[2] = {};
		if (skb_load_bytes(skb, 0, copy, 14))
			return 0;
		*destination = copy[0] & 0xffffffffffffULL;
		*source = copy[0] >> 48 | (copy[1] & 0xffffffffULL) << 16;
		return 1;
	}
	*destination = *(u32 *)data | (u64) * (u16 *)(data + 4) << 32;
	*source = *(u16 *)(data + 6) | (u64) * (u32 *)(data + 8) << 16;
	return 1;
}

#define TTL 64
/* What each relay takes off. A packet that has not been relayed, or by a peer of 2.8.1, arrives with `TTL` at most. */
#define RELAY_COST 12
#define RELAYED_TTL 255

/*
 * The TTL with which a packet is relayed that has arrived with this one; 0 if it has been relayed too often: peers that have different
 * routes for a moment may send it in a circle.
 */
INLINE u32 relay_ttl(u32 ttl)
{
	if (ttl <= TTL)
		return RELAYED_TTL;
	return ttl > TTL + RELAY_COST ? ttl - RELAY_COST : 0;
}

/* Before Linux 6.0 a tunnel key ends before the local address. */
#define SHORT_KEY_SIZE 28

/* `globals.local_address` is 16 or 0: without a branch the verifier has no two cases to follow. */
INLINE u32 key_size(void)
{
	struct globals *g = get_globals();
	return g ? SHORT_KEY_SIZE + (g->local_address & (sizeof(struct bpf_tunnel_key) - SHORT_KEY_SIZE)) : SHORT_KEY_SIZE;
}

INLINE long set_key(struct __sk_buff *skb, struct bpf_tunnel_key *key, const struct neighbour *n, u32 from, u32 to, u32 size)
{
	key->tunnel_id = from | to << 12;
	key->remote_ipv4 = n->remote;
	key->local_ipv4 = n->local;
	return skb_set_tunnel_key(skb, key, size, BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT);
}

/* Sends the frame to a neighbour, as the last thing that is done with it. */
INLINE int send(struct __sk_buff *skb, struct tables *t, u32 neighbour, u32 from, u32 to, u32 ttl, u64 now)
{
	const struct neighbour *n = &t->neighbours[neighbour & (IDS - 1)];
	struct bpf_tunnel_key key = { .tunnel_ttl = ttl };
	if (set_key(skb, &key, n, from, to, key_size())) {
		count(DROP_SEND, 1, skb->len);
		return TC_ACT_SHOT;
	}
	note_sent(t, n->id, now);
	return redirect(n->ifindex, 0);
}

/*
 * Sends copies to the neighbours in the broadcast tree of the peer that `set_flood` has noted.
 *
 * The verifier walks through every turn of the loop, once for each state in which it gets there, and through all combinations of the
 * branches of all turns. So nothing that is known before is used here: even the tables are looked up again. And nothing branches but the
 * end of the loop: what must not be sent goes to device 0, which does not exist.
 */
INLINE struct tables *flood(struct __sk_buff *skb, u32 *from)
{
	struct bpf_tunnel_key key = { .tunnel_ttl = *(volatile u32 *)&skb->cb[1] };
	struct tables *t = get_tables();
	if (!t)
		return 0;
	u32 source = *(volatile u32 *)&skb->cb[0] & (IDS - 1);
	const struct peer *peer = &t->peers[source];
	u64 size = key_size(), bytes = skb->len, refused = 0, left_out = 0;
	u64 first = peer->first, n = peer->count & MAX_BROADCAST, except = peer->except;
	for (u64 i = 0; i < MAX_BROADCAST; i++) {
		if (i >= n)
			break;
		u64 index = t->broadcast[(first + i) & (BROADCAST_POOL - 1)];
		const struct neighbour *to = &t->neighbours[index & (IDS - 1)];
		/* 1 if equal, otherwise 0. */
		u64 excepted = ((index ^ except) - 1) >> 63;
		/* All ones after an error, otherwise 0. */
		u64 error = (long)set_key(skb, &key, to, source, to->id, size) >> 63;
		OPAQUE(excepted);
		OPAQUE(error);
		u32 ifindex = to->ifindex & (excepted - 1) & ~error;
		u64 failed = (u64)clone_redirect(skb, ifindex, 0) >> 63;
		OPAQUE(failed);
		refused += failed;
		left_out += excepted;
	}
	struct limits *limit = map_lookup(&limits, &source);
	u64 now = ktime_get_ns();
	if (n && limit && since(now, limit->flood) >= TRAFFIC_INTERVAL) {
		limit->flood = now;
		report(t, EVENT_FLOOD, source, 0, 0, 0);
	}
	u32 sent = n - refused;
	count(COPIES, sent, sent * bytes);
	if (refused != left_out)
		count(DROP_SEND, refused - left_out, (refused - left_out) * bytes);
	*from = source;
	return t;
}

INLINE void set_flood(struct __sk_buff *skb, u32 from, u32 ttl)
{
	*(volatile u32 *)&skb->cb[0] = from;
	*(volatile u32 *)&skb->cb[1] = ttl;
}

/* Where an Ethernet type is, and that of IPv4. */
#define TYPE_AT 12
#define TYPE_IPV4 __builtin_bswap16(0x0800)
/* Where the fields are that say how a probe leaves: the addresses of its IP header, and its TCP header up to the acknowledgement. */
#define PROBE_TUNNEL_AT 26

/* In network byte order. */
struct probe_tunnel {
	u32 local, remote;
	u16 from, to;
	u32 sequence;
	u32 ifindex;
};

/* A probe of user space (docs/spec/data-plane.md 5.8). The bridge forwards no frame whose source is zero, so that no container can send one. */
INLINE int send_probe(struct __sk_buff *skb)
{
	struct probe_tunnel tunnel;
	struct bpf_tunnel_key key = { .tunnel_ttl = TTL };
	if (skb_load_bytes(skb, PROBE_TUNNEL_AT, &tunnel, sizeof(tunnel)))
		return TC_ACT_SHOT;
	const struct neighbour to = {
		.remote = __builtin_bswap32(tunnel.remote),
		.local = __builtin_bswap32(tunnel.local),
		.ifindex = __builtin_bswap32(tunnel.ifindex),
	};
	if (set_key(skb, &key, &to, __builtin_bswap16(tunnel.from), __builtin_bswap16(tunnel.to), key_size())) {
		count(DROP_SEND, 1, skb->len);
		return TC_ACT_SHOT;
	}
	return redirect(to.ifindex, 0);
}

INLINE int is_ipv4(struct __sk_buff *skb)
{
	u16 type = 0;
	return !skb_load_bytes(skb, TYPE_AT, &type, sizeof(type)) && type == TYPE_IPV4;
}

/* Frames of the local bridge, on ingress of `vethwe-datapath`. */
SECTION("tc/uplink") int uplink(struct __sk_buff *skb)
{
	struct verdict v = {};
	u64 destination, source;
	struct tables *t = get_tables();
	if (UNLIKELY(!t))
		return TC_ACT_UNSPEC;
	u32 len = skb->len;
	if (UNLIKELY(!load_macs(skb, &destination, &source))) {
		count(DROP_TOO_SHORT, 1, len);
		return TC_ACT_SHOT;
	}
	if (UNLIKELY((source | destination) == 0) && is_ipv4(skb))
		return send_probe(skb);
	u64 now = ktime_get_ns();
	decide_local(t, source, destination, now, &v);
	switch (v.action) {
	case ACTION_UNICAST:
		count(UNICAST, 1, len);
		return send(skb, t, v.neighbour, t->own, v.peer, TTL, now);
	case ACTION_USER:
		count(TO_USER, 1, len);
		return redirect(t->tap, 0);
	case ACTION_FLOOD:
		count(FLOODED, 1, len);
		set_flood(skb, v.peer, TTL);
		break;
	default:
		count(v.reason, 1, len);
		return TC_ACT_SHOT;
	}
	u32 from;
	t = flood(skb, &from);
	if (!t)
		return TC_ACT_SHOT;
	if (!t->peers[from].broadcast_user)
		return TC_ACT_STOLEN;
	count(TO_USER, 1, skb->len);
	return redirect(t->tap, 0);
}

/* The port of a local MAC, or 0. */
INLINE u32 port_of(u64 mac, u64 now)
{
	const struct port *known = map_lookup(&ports, &mac);
	return known && since(now, known->bridged) < PORT_LIFETIME ? known->ifindex : 0;
}

/* Frames of a container, on ingress of a port of the bridge. Group addresses, unknown ones and what has to be learnt are for the bridge. */
SECTION("tc/port") int port(struct __sk_buff *skb)
{
	u64 destination, source;
	struct tables *t = get_tables();
	if (!t || !load_macs(skb, &destination, &source) || IS_GROUP(destination) || !IS_LEARNABLE(source))
		return TC_ACT_UNSPEC;
	u64 now = ktime_get_ns();
	u32 ifindex = skb->ifindex;
	const struct port *known = map_lookup(&ports, &source);
	if (UNLIKELY(!known || known->ifindex != ifindex || since(now, known->bridged) >= BRIDGED_INTERVAL)) {
		struct port seen = { .ifindex = ifindex, .bridged = now };
		map_update(&ports, &source, &seen, 0);
		return TC_ACT_UNSPEC;
	}
	struct mac_entry *entry = map_lookup(&macs, &source), *to = map_lookup(&macs, &destination);
	if (UNLIKELY(!entry || entry->peer != t->own || entry->pending || !to))
		return TC_ACT_UNSPEC;
	u32 id = to->peer & (IDS - 1);
	if (id == t->own) {
		u32 out = port_of(destination, now);
		if (!out || out == ifindex)
			return TC_ACT_UNSPEC;
		touch(t, EVENT_LOCAL_MAC, source, entry, now);
		return redirect_peer(out, 0);
	}
	const struct peer *peer = &t->peers[id];
	if (peer->kind != KIND_KERNEL)
		return TC_ACT_UNSPEC;
	touch(t, EVENT_LOCAL_MAC, source, entry, now);
	count(UNICAST, 1, skb->len);
	return send(skb, t, peer->next, t->own, id, TTL, now);
}

/* To user space, with the ids of source and destination as two VLAN tags, which every kind of frame can carry. */
INLINE int relay_to_user(struct __sk_buff *skb, struct tables *t, u32 from, u32 to)
{
	const u16 service_tag = __builtin_bswap16(0x88a8);
	u32 len = skb->len;
	if (skb_vlan_push(skb, service_tag, to) || skb_vlan_push(skb, service_tag, from)) {
		count(DROP_SEND, 1, len);
		return TC_ACT_SHOT;
	}
	count(RELAYED_TO_USER, 1, len);
	return redirect(t->relay_tap, 0);
}

/* Bytes of a frame that tests a path, where its kind is, and kinds (docs/spec/data-plane.md 4.10). */
#define LIVENESS_FRAME 28
#define LIVENESS_KIND 26
#define LIVENESS_PROBE 0
#define LIVENESS_ANSWER 1

/*
 * Both MACs are zero: the frame is for the control of a connection. A test of the path is answered here, also without a process. Probes go to
 * user space whole, because it has to check all bytes.
 */
INLINE int control(struct __sk_buff *skb, struct tables *t, struct bpf_tunnel_key *key, u64 now)
{
	u32 from = key->tunnel_id & (IDS - 1), to = key->tunnel_id >> 12 & (IDS - 1), len = skb->len, ifindex = skb->ifindex;
	struct control_frame event = {
		.kind = EVENT_CONTROL,
		.vni = key->tunnel_id,
		.remote = key->remote_ipv4,
		.ifindex = ifindex,
		.len = len,
	};
	struct limits *limit = map_lookup(&limits, &from);
	u32 n = len < sizeof(event.head) ? len : sizeof(event.head);
	count(CONTROL, 1, len);
	if (is_ipv4(skb))
		return t && to == t->own && t->peers[from].kind != KIND_UNKNOWN ? relay_to_user(skb, t, from, to) : TC_ACT_SHOT;
	if (!limit || n == 0 || skb_load_bytes(skb, 0, event.head, n))
		return TC_ACT_SHOT;
	if (limit->control && since(now, limit->control) < CONTROL_INTERVAL) {
		count(CONTROL_SUPPRESSED, 1, len);
		return TC_ACT_SHOT;
	}
	u64 wakeup = len != LIVENESS_FRAME && limit->control && since(now, limit->control) < QUIET_INTERVAL ? BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP;
	limit->control = now;
	if (ringbuf_output(&events, &event, sizeof(event), wakeup))
		count(EVENTS_LOST, 1, 0);
	if (!t || len != LIVENESS_FRAME || event.head[LIVENESS_KIND] != LIVENESS_PROBE || to != t->own ||
	    t->peers[from].kind == KIND_UNKNOWN)
		return TC_ACT_STOLEN;
	const struct neighbour back = { .remote = key->remote_ipv4, .local = key->local_ipv4 };
	u8 answer = LIVENESS_ANSWER;
	key->tunnel_tos = 0;
	key->tunnel_ttl = TTL;
	if (skb_store_bytes(skb, LIVENESS_KIND, &answer, 1, 0) || set_key(skb, key, &back, to, from, key_size()))
		return TC_ACT_SHOT;
	count(ANSWERED, 1, len);
	return redirect(ifindex, 0);
}

/* Frames of peers, on ingress of a VXLAN device. */
SECTION("tc/tunnel") int tunnel(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = {};
	struct verdict v = {};
	u64 destination, source;
	u32 len = skb->len;
	if (UNLIKELY(skb_get_tunnel_key(skb, &key, key_size(), 0))) {
		count(DROP_NO_KEY, 1, len);
		return TC_ACT_SHOT;
	}
	if (UNLIKELY(!load_macs(skb, &destination, &source))) {
		count(DROP_TOO_SHORT, 1, len);
		return TC_ACT_SHOT;
	}
	struct tables *t = get_tables();
	u32 from = key.tunnel_id & (IDS - 1), to = key.tunnel_id >> 12 & (IDS - 1);
	u64 now = ktime_get_ns();
	int is_control = (source | destination) == 0;
	if (t)
		note_received(t, from, key.remote_ipv4, skb->ifindex, !is_control, now);
	if (UNLIKELY(is_control))
		return control(skb, t, &key, now);
	if (UNLIKELY(!t)) {
		count(DROP_NO_TABLES, 1, len);
		return TC_ACT_SHOT;
	}
	decide_peer(t, from, to, source, destination, now, &v);
	const struct neighbour *n = &t->neighbours[v.neighbour & (IDS - 1)];
	u32 ttl = relay_ttl(key.tunnel_ttl);
	switch (v.action) {
	case ACTION_RELAY:
		if (UNLIKELY(n->remote == key.remote_ipv4 && n->ifindex == skb->ifindex)) {
			count(DROP_HAIRPIN, 1, len);
			return TC_ACT_SHOT;
		}
		if (UNLIKELY(!ttl)) {
			count(DROP_HOPS, 1, len);
			return TC_ACT_SHOT;
		}
		count(RELAYED, 1, len);
		return send(skb, t, v.neighbour, from, to, ttl, now);
	case ACTION_RELAY_USER:
		return relay_to_user(skb, t, from, to);
	case ACTION_DELIVER:
		count(DELIVERED, 1, len);
		u32 port = port_of(destination, now);
		return port ? redirect_peer(port, 0) : redirect(t->uplink, 0);
	case ACTION_DELIVER_FLOOD:
		count(DELIVERED, 1, len);
		if (UNLIKELY(!ttl)) {
			count(DROP_HOPS, 1, len);
			return redirect(t->uplink, 0);
		}
		set_flood(skb, v.peer, ttl);
		break;
	default:
		count(v.reason, 1, len);
		return TC_ACT_SHOT;
	}
	t = flood(skb, &from);
	if (!t)
		return TC_ACT_SHOT;
	if (!t->peers[from].broadcast_user)
		return redirect(t->uplink, 0);
	if (clone_redirect(skb, t->uplink, 0))
		count(DROP_SEND, 1, skb->len);
	return relay_to_user(skb, t, from, t->own);
}

/* What `test` reads from its packet, after an Ethernet header, and replaces by a `struct verdict`. */
struct test_input {
	u32 from_peer;
	u16 from, to;
	u64 now;
	u64 source, destination;
};

/* The decision alone, for tests. */
SECTION("tc/test") int test(struct __sk_buff *skb)
{
	struct test_input in;
	struct verdict v = {};
	struct tables *t = get_tables();
	if (!t || skb_load_bytes(skb, 14, &in, sizeof(in)))
		return TC_ACT_SHOT;
	if (in.from_peer)
		decide_peer(t, in.from, in.to, in.source, in.destination, in.now, &v);
	else
		decide_local(t, in.source, in.destination, in.now, &v);
	return skb_store_bytes(skb, 14, &v, sizeof(v), 0) ? TC_ACT_SHOT : 0;
}

/* Whether the kernel takes a tunnel key with a local address (Linux 6.0). Returns 0 if so. */
SECTION("tc/probe") int probe(struct __sk_buff *skb)
{
	struct bpf_tunnel_key key = { .tunnel_ttl = TTL };
	struct neighbour n = {};
	return set_key(skb, &key, &n, 0, 0, sizeof(key)) ? 1 : 0;
}
