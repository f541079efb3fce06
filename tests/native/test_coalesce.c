#include "coalesce.h"

#include "check.h"
#include "packets.h"
#include "split.h"

enum { MSS = 100, PACKETS_MAX = RUNS_MAX };

/* The packets of one batch; each lies at the end of its own memory. */
struct input {
    struct coalescer coalescer;
    struct ip_packet packets[4096];
    unsigned count;
};

static struct input *input_new(void)
{
    struct input *input = calloc(1, sizeof *input);
    CHECK(input);
    input->coalescer.tcp = input->coalescer.udp = true;
    return input;
}

static void input_free(struct input *input)
{
    for (unsigned i = 0; i < input->count; i++)
        free(input->packets[i].data);
    free(input);
}

static void add_bytes(struct input *input, const uint8_t *bytes, size_t length)
{
    struct ip_packet *packet = &input->packets[input->count++];
    uint8_t *exact = check_exact(bytes, length);
    CHECK(ip_parse(exact, length, packet));
    CHECK(!coalesce_full(&input->coalescer));
    coalesce_add(&input->coalescer, packet, 3);
}

static void add(struct input *input, const struct words *words)
{
    static uint8_t bytes[WORDS_MAX];
    add_bytes(input, bytes, words_put(bytes, words));
}

/* The packet that is written for a run, without its offload header. */
static size_t gather(const struct run *run, uint8_t *out, struct offload *offload)
{
    memcpy(offload, run->pieces[0].iov_base, OFFLOAD_HEADER);
    size_t length = run->pieces[0].iov_len - OFFLOAD_HEADER;
    memcpy(out, (uint8_t *)run->pieces[0].iov_base + OFFLOAD_HEADER, length);
    for (unsigned i = 1; i <= run->segments; i++) {
        memcpy(out + length, run->pieces[i].iov_base, run->pieces[i].iov_len);
        length += run->pieces[i].iov_len;
    }
    CHECK_EQ(length, run->length);
    return length;
}

/* The segments that a device makes of a run must be the original packets, in order. */
static void check_run(const struct input *input, const struct run *run, unsigned *next)
{
    static uint8_t bytes[WORDS_MAX];
    struct offload offload;
    size_t length = gather(run, bytes, &offload);
    struct ip_packet packet;
    CHECK(ip_parse(bytes, length, &packet));
    CHECK_EQ(packet.length, length);
    CHECK_EQ(run->peer, 3);
    if (run->segments == 1) {
        const struct ip_packet *original = &input->packets[(*next)++];
        CHECK_EQ(offload.flags | offload.gso_type, 0);
        CHECK_EQ(original->length, length);
        CHECK(memcmp(original->data, bytes, length) == 0);
        return;
    }
    struct split split;
    CHECK_EQ(offload.header_length, run->header);
    CHECK(split_open(&split, &packet, &offload));
    for (unsigned i = 0; i < run->segments; i++) {
        const struct ip_packet *original = &input->packets[(*next)++];
        uint8_t *header = malloc(split.header), *payload;
        CHECK(header && !split_done(&split));
        size_t part = split_next(&split, header, &payload);
        CHECK_EQ(original->length, split.header + part);
        CHECK(memcmp(original->data, header, split.header) == 0);
        CHECK(memcmp(original->data + split.header, payload, part) == 0);
        free(header);
    }
    CHECK(split_done(&split));
}

/* Finishes the batch and checks the number of packets in each run; 0 ends the list. For batches in
 * which no packet overtakes another. */
static void check_runs(struct input *input, const unsigned *segments)
{
    unsigned next = 0, i = 0;
    coalesce_finish(&input->coalescer);
    for (; i < input->coalescer.count && segments[i]; i++) {
        CHECK_EQ(input->coalescer.runs[i].segments, segments[i]);
        check_run(input, &input->coalescer.runs[i], &next);
    }
    CHECK_EQ(i, input->coalescer.count);
    CHECK_EQ(segments[i], 0);
    CHECK_EQ(next, input->count);
}

#define RUNS(...) ((const unsigned[]){__VA_ARGS__, 0})

/* Segment `index` of a stream. */
static struct words segment(uint8_t version, uint8_t protocol, unsigned index)
{
    return (struct words){
        .version = version,
        .protocol = protocol,
        .id = (uint16_t)(0xfffe + index),
        .sequence = 0xffffff00 + index * MSS,
        .payload = MSS,
    };
}

TEST(segments_join_and_split_again)
{
    for (uint8_t version = 4; version <= 6; version += 2) {
        for (int udp = 0; udp < 2; udp++) {
            struct input *input = input_new();
            for (unsigned i = 0; i < 5; i++) {
                struct words words = segment(version, udp ? IP_UDP : IP_TCP, i);
                words.payload = i == 4 ? 17 : MSS;
                words.options = udp ? 0 : 12;
                if (!udp && i == 4)
                    words.flags = TCP_ACK | TCP_PSH;
                add(input, &words);
            }
            check_runs(input, RUNS(5));
            input_free(input);
        }
    }
}

TEST(a_single_packet_is_written_unchanged)
{
    struct input *input = input_new();
    struct words words = segment(4, IP_TCP, 0);
    static uint8_t bytes[WORDS_MAX];
    size_t length = words_put(bytes, &words);
    bytes[length - 1] ^= 1; /* a wrong checksum, which is not checked here */
    add_bytes(input, bytes, length);
    check_runs(input, RUNS(1));
    input_free(input);
}

/* Whether two consecutive segments, of which the second is changed, are joined. */
static bool joins(struct words first, struct words second)
{
    struct input *input = input_new();
    add(input, &first);
    add(input, &second);
    bool joined = input->coalescer.count == 1;
    check_runs(input, joined ? RUNS(2) : RUNS(1, 1));
    input_free(input);
    return joined;
}

TEST(only_segments_that_split_would_make_are_joined)
{
    static const struct {
        const char *name;
        bool joins;
        uint8_t version, protocol;
        struct words words; /* added to the fields of the second */
    } rows[] = {
        {"the next in order", true, 4, IP_TCP, {0}},
        {"the next in order, 6", true, 6, IP_TCP, {0}},
        {"a gap", false, 4, IP_TCP, {.sequence = 1}},
        {"sent again", false, 6, IP_TCP, {.sequence = (uint32_t)-MSS}},
        {"another port", false, 4, IP_TCP, {.port = 1}},
        {"another host", false, 6, IP_TCP, {.host = 1}},
        {"another class", false, 4, IP_TCP, {.tos = 4}},
        {"another ECN", false, 4, IP_TCP, {.tos = 3}},
        {"another ECN, 6", false, 6, IP_TCP, {.tos = 3}},
        {"another TTL", false, 4, IP_TCP, {.ttl = 63}},
        {"another hop limit", false, 6, IP_TCP, {.ttl = 63}},
        {"another flow label", false, 6, IP_TCP, {.flow_label = 1}},
        {"another ack", false, 4, IP_TCP, {.acknowledgement = 1}},
        {"another window", false, 6, IP_TCP, {.window = 1}},
        {"more options", false, 4, IP_TCP, {.options = 4}},
        {"larger", false, 4, IP_TCP, {.payload = 1}},
        {"may be fragmented", false, 4, IP_TCP, {.fragmentable = true}},
        {"PSH", true, 4, IP_TCP, {.flags = TCP_ACK | TCP_PSH}},
        {"FIN", false, 4, IP_TCP, {.flags = TCP_ACK | TCP_FIN}},
        {"SYN", false, 4, IP_TCP, {.flags = TCP_ACK | TCP_SYN}},
        {"RST", false, 6, IP_TCP, {.flags = TCP_ACK | TCP_RST}},
        {"URG", false, 6, IP_TCP, {.flags = TCP_ACK | TCP_URG}},
        {"CWR", false, 6, IP_TCP, {.flags = TCP_ACK | TCP_CWR}},
        {"ECE", false, 6, IP_TCP, {.flags = TCP_ACK | TCP_ECE}},
        {"UDP", true, 4, IP_UDP, {0}},
        {"UDP without a checksum", false, 4, IP_UDP, {.no_checksum = true}},
        {"UDP, larger", false, 6, IP_UDP, {.payload = 1}},
        {"UDP, another TTL", false, 4, IP_UDP, {.ttl = 63}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        struct words second = segment(rows[i].version, rows[i].protocol, 1);
        const struct words *more = &rows[i].words;
        second.sequence += more->sequence;
        second.payload += more->payload;
        second.port = more->port;
        second.host = more->host;
        second.tos = more->tos;
        second.ttl = more->ttl;
        second.flow_label = more->flow_label;
        second.acknowledgement = more->acknowledgement;
        second.window = more->window;
        second.options = more->options;
        second.fragmentable = more->fragmentable;
        second.no_checksum = more->no_checksum;
        second.flags = more->flags;
        CHECK_EQ(joins(segment(rows[i].version, rows[i].protocol, 0), second), rows[i].joins);
    }
}

TEST(without_df_the_ids_must_increment)
{
    struct words first = segment(4, IP_TCP, 0), second = segment(4, IP_TCP, 1);
    first.fragmentable = second.fragmentable = true;
    CHECK(joins(first, second));
    second.id++;
    CHECK(!joins(first, second));
}

/* Changes the byte of a packet that is `at` from its end, and returns whether it is joined. */
static bool joins_spoilt(unsigned spoilt)
{
    struct input *input = input_new();
    for (unsigned i = 0; i < 3; i++) {
        static uint8_t bytes[WORDS_MAX];
        struct words words = segment(6, IP_UDP, i);
        size_t length = words_put(bytes, &words);
        if (i == spoilt)
            bytes[length - 1] ^= 0x40;
        add_bytes(input, bytes, length);
    }
    unsigned count = input->coalescer.count;
    unsigned next = 0;
    coalesce_finish(&input->coalescer);
    for (unsigned i = 0; i < count; i++)
        check_run(input, &input->coalescer.runs[i], &next);
    input_free(input);
    return count == 1;
}

TEST(a_packet_with_a_wrong_checksum_is_never_joined)
{
    CHECK(joins_spoilt(3));
    for (unsigned spoilt = 0; spoilt < 3; spoilt++)
        CHECK(!joins_spoilt(spoilt));
}

TEST(a_shorter_segment_ends_the_run)
{
    struct input *input = input_new();
    for (unsigned i = 0; i < 4; i++) {
        struct words words = segment(4, IP_UDP, i);
        words.payload = i == 1 ? 50 : MSS;
        add(input, &words);
    }
    check_runs(input, RUNS(2, 2));
    input_free(input);
}

TEST(psh_ends_the_run)
{
    struct input *input = input_new();
    for (unsigned i = 0; i < 5; i++) {
        struct words words = segment(4, IP_TCP, i);
        words.flags = i == 0 || i == 2 ? TCP_ACK | TCP_PSH : TCP_ACK;
        add(input, &words);
    }
    check_runs(input, RUNS(1, 2, 2));
    input_free(input);
}

/* Four segments with `middle` after the second; returns the number of runs. */
static unsigned runs_around(const uint8_t *middle, size_t length)
{
    struct input *input = input_new();
    for (unsigned i = 0; i < 4; i++) {
        struct words words = segment(4, IP_TCP, i);
        if (i == 2)
            add_bytes(input, middle, length);
        add(input, &words);
    }
    unsigned count = input->coalescer.count;
    input_free(input);
    return count;
}

TEST(packets_that_must_not_be_overtaken_end_runs)
{
    static const struct {
        const char *name;
        struct words words;
        size_t at; /* offset of a further byte that is set */
        uint8_t value;
        unsigned runs;
    } rows[] = {
        {"a pure ACK", {.version = 4}, 0, 0, 2},
        {"another flow", {.version = 4, .port = 9, .payload = 10}, 0, 0, 2},
        {"UDP", {.version = 4, .protocol = IP_UDP}, 0, 0, 2},
        {"RST of the flow", {.version = 4, .flags = TCP_RST}, 0, 0, 3},
        {"FIN of the flow", {.version = 4, .flags = TCP_ACK | TCP_FIN}, 0, 0, 3},
        {"FIN of another", {.version = 4, .port = 9, .flags = TCP_ACK | TCP_FIN}, 0, 0, 2},
        {"a fragment", {.version = 4, .host = 8, .fragmentable = true}, 6, 0x20, 3},
        {"options", {.version = 4, .host = 8}, 0, 0x46, 3},
        {"an extension header", {.version = 6}, 6, 60, 3},
        {"a TCP header of 16 bytes", {.version = 4, .host = 8}, 32, 0x40, 3},
        {"ICMP", {.version = 4}, 9, IP_ICMP, 2},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        check_row = rows[i].name;
        uint8_t bytes[400];
        size_t length = words_put(bytes, &rows[i].words);
        if (rows[i].value)
            bytes[rows[i].at] = rows[i].value;
        CHECK_EQ(runs_around(bytes, length), rows[i].runs);
    }
}

TEST(truncated_headers_are_not_read)
{
    for (int udp = 0; udp < 2; udp++) {
        for (size_t behind = 0; behind < 20; behind++) {
            if (udp && behind >= 8)
                break;
            uint8_t bytes[400];
            struct words words = segment(4, udp ? IP_UDP : IP_TCP, 2);
            words_put(bytes, &words);
            put16(bytes + 2, (uint16_t)(20 + behind));
            CHECK_EQ(runs_around(bytes, 20 + behind), 3);
        }
    }
}

TEST(a_run_ends_before_65535_bytes)
{
    struct input *input = input_new();
    struct words words = {.payload = 30000};
    for (unsigned i = 0; i < 5; i++, words.sequence += 30000, words.id++)
        add(input, &words);
    check_runs(input, RUNS(2, 2, 1));
    input_free(input);
}

TEST(the_number_of_segments_of_a_run_is_limited)
{
    struct input *input = input_new();
    for (unsigned i = 0; i < RUN_SEGMENTS_MAX + 1; i++) {
        struct words words = segment(4, IP_TCP, i);
        add(input, &words);
    }
    check_runs(input, RUNS(RUN_SEGMENTS_MAX, 1));
    input_free(input);
}

TEST(the_longest_headers_fit)
{
    struct input *input = input_new();
    for (unsigned i = 0; i < 3; i++) {
        struct words words = segment(6, IP_TCP, i);
        words.options = 40;
        add(input, &words);
    }
    check_runs(input, RUNS(3));
    input_free(input);
}

TEST(each_protocol_can_be_turned_off)
{
    for (int udp = 0; udp < 2; udp++) {
        struct input *input = input_new();
        input->coalescer.tcp = udp;
        input->coalescer.udp = !udp;
        for (unsigned i = 0; i < 2; i++) {
            struct words words = segment(4, udp ? IP_UDP : IP_TCP, i);
            add(input, &words);
        }
        check_runs(input, RUNS(1, 1));
        input_free(input);
    }
}

TEST(a_batch_can_be_filled_and_reset)
{
    struct input *input = input_new();
    for (unsigned i = 0; i < RUNS_MAX; i++) {
        struct words words = segment(4, IP_UDP, 0);
        words.port = (uint16_t)i;
        add(input, &words);
    }
    CHECK(coalesce_full(&input->coalescer));
    coalesce_reset(&input->coalescer);
    struct words words = segment(4, IP_UDP, 1);
    add(input, &words); /* the run of its flow was reset */
    CHECK_EQ(input->coalescer.count, 1);
    CHECK_EQ(input->coalescer.runs[0].segments, 1);
    input_free(input);
}

/* The position of each payload among all runs, to detect reordering. */
static unsigned place_of(const struct input *input, const struct ip_packet *packet)
{
    unsigned place = 0;
    for (unsigned i = 0; i < input->coalescer.count; i++) {
        const struct run *run = &input->coalescer.runs[i];
        for (unsigned j = 1; j <= run->segments; j++, place++) {
            const uint8_t *start = run->pieces[j].iov_base;
            if (start >= packet->data && start < packet->data + packet->length)
                return place;
        }
    }
    bool found = false;
    CHECK(found);
    return 0;
}

TEST(order_within_a_flow_never_changes)
{
    uint64_t random = 11;
    for (int round = 0; round < 500; round++) {
        struct input *input = input_new();
        uint32_t sequence[4] = {0};
        uint8_t flow[RUNS_MAX];
        bool data[RUNS_MAX];
        for (unsigned i = 0; i < RUNS_MAX; i++) {
            flow[i] = check_random(&random) % 4;
            struct words words = {
                .version = flow[i] % 2 ? 6 : 4,
                .protocol = flow[i] / 2 ? IP_UDP : IP_TCP,
                .sequence = sequence[flow[i]],
                .payload = check_random(&random) % 8 ? MSS : check_random(&random) % MSS,
            };
            if (check_random(&random) % 16 == 0)
                words.flags = TCP_ACK | (uint8_t)(1 << check_random(&random) % 8);
            sequence[flow[i]] += (uint32_t)words.payload;
            data[i] = words.payload || words.protocol == IP_UDP;
            add(input, &words);
        }
        coalesce_finish(&input->coalescer);
        unsigned last[4] = {0};
        for (unsigned i = 0; i < RUNS_MAX; i++) {
            unsigned place = place_of(input, &input->packets[i]);
            if (!data[i])
                continue;
            CHECK(place >= last[flow[i]]);
            last[flow[i]] = place;
        }
        input_free(input);
    }
}
