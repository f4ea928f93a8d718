/* CRC-32C, slicing by 8: the register after 8 bytes is the XOR of one table entry for each of them.
 *
 * Tables are linear, so a table is spelt by the registers of the 8 bits of its byte.  Row d holds,
 * for the byte that d others follow, those of bit 7 down to bit 0: what 8 d + 1 to 8 d + 8 steps of
 * the division by the reflected polynomial 0x82F63B78 leave.  The hardware's instruction is left
 * alone: plain C reads over 1 GB/s, faster than the files come.
 */
#include <string.h>

#include "file.h"

#define CRC_2(x, b) (x), (x) ^ (b)
#define CRC_4(x, c, b) CRC_2(x, b), CRC_2((x) ^ (c), b)
#define CRC_8(x, d, c, b) CRC_4(x, c, b), CRC_4((x) ^ (d), c, b)
#define CRC_16(x, e, d, c, b) CRC_8(x, d, c, b), CRC_8((x) ^ (e), d, c, b)
#define CRC_32(x, f, e, d, c, b) CRC_16(x, e, d, c, b), CRC_16((x) ^ (f), e, d, c, b)
#define CRC_64(x, g, f, e, d, c, b) CRC_32(x, f, e, d, c, b), CRC_32((x) ^ (g), f, e, d, c, b)
#define CRC_128(x, h, g, f, e, d, c, b)                                                            \
    CRC_64(x, g, f, e, d, c, b), CRC_64((x) ^ (h), g, f, e, d, c, b)
#define CRC_256(i, h, g, f, e, d, c, b)                                                            \
    CRC_128(0, h, g, f, e, d, c, b), CRC_128((i), h, g, f, e, d, c, b)

static const uint32_t crc_tables[8][256] = {
    {CRC_256(0x82F63B78, 0x417B1DBC, 0x20BD8EDE, 0x105EC76F, 0x8AD958CF, 0xC79A971F, 0xE13B70F7,
             0xF26B8303)},
    {CRC_256(0xFBC3FAF9, 0xFF17C604, 0x7F8BE302, 0x3FC5F181, 0x9D14C3B8, 0x4E8A61DC, 0x274530EE,
             0x13A29877)},
    {CRC_256(0x8B277743, 0xC76580D9, 0xE144FB14, 0x70A27D8A, 0x38513EC5, 0x9EDEA41A, 0x4F6F520D,
             0xA541927E)},
    {CRC_256(0x52A0C93F, 0xABA65FE7, 0xD725148B, 0xE964B13D, 0xF64463E6, 0x7B2231F3, 0xBF672381,
             0xDD45AAB8)},
    {CRC_256(0x6EA2D55C, 0x37516AAE, 0x1BA8B557, 0x8F2261D3, 0xC5670B91, 0xE045BEB0, 0x7022DF58,
             0x38116FAC)},
    {CRC_256(0x1C08B7D6, 0x0E045BEB, 0x85F4168D, 0xC00C303E, 0x6006181F, 0xB2F53777, 0xDB8CA0C3,
             0xEF306B19)},
    {CRC_256(0xF56E0EF4, 0x7AB7077A, 0x3D5B83BD, 0x9C5BFAA6, 0x4E2DFD53, 0xA5E0C5D1, 0xD0065990,
             0x68032CC8)},
    {CRC_256(0x34019664, 0x1A00CB32, 0x0D006599, 0x847609B4, 0x423B04DA, 0x211D826D, 0x9278FA4E,
             0x493C7D27)},
};

uint32_t bitm_crc32c(uint32_t crc, const void *bytes, size_t n_bytes)
{
    const uint8_t *byte = bytes;
    const uint8_t *end = byte + n_bytes;
    uint32_t r = ~crc;
    for (; end - byte >= 8; byte += 8) {
        uint32_t low, high;
        memcpy(&low, byte, sizeof low);
        memcpy(&high, byte + 4, sizeof high);
        low ^= r;
        r = crc_tables[7][low & 0xFF] ^ crc_tables[6][low >> 8 & 0xFF] ^
            crc_tables[5][low >> 16 & 0xFF] ^ crc_tables[4][low >> 24] ^
            crc_tables[3][high & 0xFF] ^ crc_tables[2][high >> 8 & 0xFF] ^
            crc_tables[1][high >> 16 & 0xFF] ^ crc_tables[0][high >> 24];
    }
    for (; byte < end; byte++)
        r = r >> 8 ^ crc_tables[0][(r ^ *byte) & 0xFF];
    return ~r;
}
