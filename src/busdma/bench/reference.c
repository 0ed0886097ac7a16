/*
 * The reference of `busdma bench load`: load, sync and unload as a kernel does them, in plain C.
 *
 * Written from bus_dma(9) and from Gibbs's description of deferred loads (tech-kern, 10 June 1998): walk the pages,
 * join a page to the last segment where it lies behind it and neither boundary nor maxsegsz is in the way; if a page is
 * out of reach, count the pages that are, take so many bounce pages, and walk again. The three operations are called
 * through a table, as a bus's are.
 *
 * Reach is one interval from 0 to lowaddr, alignment at most a page, every page is mapped: what the benchmark needs.
 * All sizes are bytes.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { UNREACHABLE = -1, TOO_MANY = -2, NOT_MAPPED = -3, SHORTAGE = -4 };

struct segment {
	uint64_t address;
	uint64_t length;
};

struct piece { /* what a sync copies */
	uint64_t client;
	uint64_t bounce;
	uint64_t length;
};

struct tag {
	uint64_t page_shift, lowaddr, alignment, boundary, maxsegsz, nsegments;
};

struct zone {
	const uint64_t *pages;
	uint8_t *is_free;
	uint64_t entries, hint;
};

struct map {
	struct tag tag;
	struct zone zone;
	uint8_t *ram;
	struct segment *segments;
	struct piece *pieces;
	uint64_t *held;
	uint64_t nsegments, npieces, nheld;
};

struct operations {
	int64_t (*load)(struct map *, const uint64_t *table, uint64_t entries, uint64_t start, uint64_t length);
	void (*sync)(struct map *);
	void (*unload)(struct map *);
};

static inline uint64_t
smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

struct cursor { /* where a load stands */
	struct segment *next; /* the first that is not written yet */
	struct segment *stop;
	uint64_t begin; /* of the last segment */
	uint64_t end;   /* behind the last segment; 0: there is none that could grow */
};

/* What the last segment cannot hold whole: fill it up, then cut the rest at every boundary and maxsegsz. */
static int
add_in_parts(const struct tag *tag, struct cursor *at, uint64_t address, uint64_t size)
{
	const uint64_t mask = tag->boundary - 1; /* no boundary: all ones */

	while (size > 0) {
		uint64_t part = smaller(size - 1, mask - (address & mask)) + 1;

		if (at->end != 0 && address == at->end && (address & mask) != 0 &&
		    address - at->begin < tag->maxsegsz) {
			part = smaller(part, tag->maxsegsz - (address - at->begin));
			at->next[-1].length += part;
		} else {
			if (at->next == at->stop)
				return 0;
			part = smaller(part, tag->maxsegsz);
			at->begin = at->next->address = address;
			at->next->length = part;
			at->next++;
		}
		address += part;
		size -= part;
		at->end = address;
	}
	return 1;
}

/* One run of bytes, all within one page: part of the last segment, or a segment of its own. */
static inline int
add(const struct tag *tag, struct cursor *at, uint64_t address, uint64_t size)
{
	const uint64_t outside = 0 - tag->boundary; /* the bits that may not differ within a segment */
	const uint64_t last = address + (size - 1);

	if (address == at->end && at->end != 0 && ((at->begin ^ last) & outside) == 0 && last - at->begin < tag->maxsegsz) {
		at->next[-1].length += size;
		at->end = last + 1;
		return 1;
	}
	if (address == at->end || ((address ^ last) & outside) != 0 || size > tag->maxsegsz)
		return add_in_parts(tag, at, address, size);
	if (at->next == at->stop)
		return 0;
	at->begin = at->next->address = address;
	at->next->length = size;
	at->next++;
	at->end = last + 1;
	return 1;
}

static inline int
out_of_reach(const struct tag *tag, uint64_t address, uint64_t size)
{
	const uint64_t last = address + (size - 1);

	return last > tag->lowaddr || last < address || (address & (tag->alignment - 1)) != 0;
}

static void
unload(struct map *map)
{
	uint64_t i;

	for (i = 0; i < map->nheld; i++) {
		uint64_t slot = map->held[i];

		map->zone.is_free[slot] = 1;
		if (slot < map->zone.hint)
			map->zone.hint = slot;
	}
	map->nsegments = map->npieces = map->nheld = 0;
}

static int64_t
load_bounced(struct map *map, const uint64_t *table, uint64_t start, uint64_t length)
{
	const struct tag tag = map->tag; /* a copy, for no store to segments can change it */
	const uint64_t page = (uint64_t)1 << tag.page_shift;
	struct cursor here = { map->segments, map->segments + tag.nsegments, 0, 0 };
	const uint64_t first = start >> tag.page_shift, head = start & (page - 1);
	uint64_t index, left, size, offset, slot, used = 0, needed = 0;

	for (left = length, index = first, offset = head; left > 0; left -= size, index++, offset = 0) {
		size = smaller(page - offset, left);
		needed += (uint64_t)out_of_reach(&tag, table[index] + offset, size);
	}
	for (slot = map->zone.hint; map->nheld < needed; slot++) {
		if (slot == map->zone.entries) {
			unload(map);
			return SHORTAGE;
		}
		if (map->zone.is_free[slot]) {
			map->zone.is_free[slot] = 0;
			map->held[map->nheld++] = slot;
		}
	}
	map->zone.hint = slot;
	for (left = length, index = first, offset = head; left > 0; left -= size, index++, offset = 0) {
		uint64_t address = table[index] + offset;

		size = smaller(page - offset, left);
		if (out_of_reach(&tag, address, size)) {
			struct piece *piece = &map->pieces[map->npieces++];

			if ((offset & (tag.alignment - 1)) != 0)
				offset = 0; /* a bounce page may begin where the tag wants it */
			piece->client = address;
			address = map->zone.pages[map->held[used++]] + offset;
			piece->bounce = address;
			piece->length = size;
		}
		if (!add(&tag, &here, address, size)) {
			unload(map);
			return TOO_MANY;
		}
	}
	map->nsegments = (uint64_t)(here.next - map->segments);
	return (int64_t)map->nsegments;
}

static int64_t
load(struct map *map, const uint64_t *table, uint64_t entries, uint64_t start, uint64_t length)
{
	const struct tag tag = map->tag; /* a copy, for no store to segments can change it */
	const uint64_t page = (uint64_t)1 << tag.page_shift;
	struct cursor here = { map->segments, map->segments + tag.nsegments, 0, 0 };
	uint64_t index = start >> tag.page_shift;
	uint64_t offset = start & (page - 1);
	uint64_t left, size;

	if (length < 1 || index >= entries || length - 1 > ((entries - index) << tag.page_shift) - offset - 1)
		return NOT_MAPPED;
	for (left = length; left > 0; left -= size) {
		uint64_t address = table[index] + offset;

		size = smaller(page - offset, left);
		if (out_of_reach(&tag, address, size))
			return load_bounced(map, table, start, length);
		if (!add(&tag, &here, address, size))
			return TOO_MANY;
		index++;
		offset = 0;
	}
	map->nsegments = (uint64_t)(here.next - map->segments);
	return (int64_t)map->nsegments;
}

static void
sync_prewrite(struct map *map)
{
	uint64_t i;

	for (i = 0; i < map->npieces; i++) {
		const struct piece *piece = &map->pieces[i];

		memcpy(map->ram + piece->bounce, map->ram + piece->client, piece->length);
	}
}

static const struct operations operations = { load, sync_prewrite, unload };
const struct operations *volatile reference_operations = &operations; /* volatile: no call may be optimised away */

/* The size of struct map, so that who describes it elsewhere can compare. */
size_t
reference_map_size(void)
{
	return sizeof(struct map);
}

/* One load that stays loaded: how many segments, or a refusal. */
int64_t
reference_load(struct map *map, const uint64_t *table, uint64_t entries, uint64_t start, uint64_t length)
{
	return reference_operations->load(map, table, entries, start, length);
}

void
reference_sync(struct map *map)
{
	reference_operations->sync(map);
}

void
reference_unload(struct map *map)
{
	reference_operations->unload(map);
}

/* So many cycles of load, sync(PREWRITE) and unload. */
int64_t
reference_cycles(struct map *map, const uint64_t *table, uint64_t entries, uint64_t start, uint64_t length,
    uint64_t cycles)
{
	int64_t answer = 0;

	for (; cycles > 0; cycles--) {
		const struct operations *call = reference_operations;

		answer = call->load(map, table, entries, start, length);
		if (answer < 1)
			return answer;
		call->sync(map);
		call->unload(map);
	}
	return answer;
}
