/* SPDX-License-Identifier: Apache-2.0 */
/* Foundation as far as csrc/ane_bridge uses it, declared from Apple's public documentation, so that the bridge can be
   type-checked and compiled for macOS where there is no SDK.  It proves agreement with these declarations, not with Apple's. */
#ifndef NF_MACSTUB_FOUNDATION_H
#define NF_MACSTUB_FOUNDATION_H

#include <objc/NSObject.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define NS_STUB(name, super) @interface name : super

@class NSArray<ObjectType>, NSDictionary<KeyType, ObjectType>, NSString;

typedef struct NSFastEnumerationState {
    unsigned long state;
    id __unsafe_unretained *itemsPtr;
    unsigned long *mutationsPtr;
    unsigned long extra[5];
} NSFastEnumerationState;

typedef struct NSRange {
    NSUInteger location, length;
} NSRange;
enum { NSNotFound = NSIntegerMax };

@protocol NSCopying
@end

NS_STUB(NSString, NSObject) <NSCopying>
+ (instancetype)stringWithUTF8String:(const char *)bytes;
- (NSString *)stringByAppendingPathComponent:(NSString *)component;
@property(readonly) NSUInteger length;
@property(readonly) const char *UTF8String;
@property(readonly) const char *fileSystemRepresentation;
- (BOOL)hasSuffix:(NSString *)suffix;
- (BOOL)isEqualToString:(NSString *)other;
- (NSString *)substringToIndex:(NSUInteger)to;
- (NSRange)rangeOfString:(NSString *)part;
@end

NS_STUB(NSNumber, NSObject) <NSCopying>
+ (NSNumber *)numberWithInt:(int)value;
+ (NSNumber *)numberWithLongLong:(long long)value;
@property(readonly) int intValue;
@property(readonly) long long longLongValue;
@property(readonly) unsigned long long unsignedLongLongValue;
@property(readonly) NSUInteger unsignedIntegerValue;
@end

NS_STUB(NSData, NSObject)
@property(readonly) NSUInteger length;
@property(readonly) const void *bytes;
+ (instancetype)dataWithContentsOfFile:(NSString *)path;
+ (instancetype)dataWithBytesNoCopy:(void *)bytes length:(NSUInteger)length freeWhenDone:(BOOL)freeWhenDone;
@end

@interface NSArray<ObjectType> : NSObject
+ (instancetype)arrayWithObjects:(const ObjectType [])objects count:(NSUInteger)count;
@property(readonly) NSUInteger count;
- (ObjectType)objectAtIndex:(NSUInteger)index;
- (NSUInteger)countByEnumeratingWithState:(NSFastEnumerationState *)state
                                  objects:(id __unsafe_unretained[])buffer
                                    count:(NSUInteger)length;
@end

@interface NSMutableArray<ObjectType> : NSArray<ObjectType>
+ (instancetype)array;
- (void)addObject:(ObjectType)object;
@end

@interface NSDictionary<KeyType, ObjectType> : NSObject
+ (instancetype)dictionaryWithObjects:(const ObjectType [])objects forKeys:(const KeyType[])keys count:(NSUInteger)count;
+ (instancetype)dictionaryWithObjects:(NSArray<ObjectType> *)objects forKeys:(NSArray<KeyType> *)keys;
- (ObjectType)objectForKey:(KeyType)key;
@end

@interface NSMutableDictionary<KeyType, ObjectType> : NSDictionary<KeyType, ObjectType>
+ (instancetype)dictionary;
- (void)setObject:(ObjectType)object forKey:(KeyType)key;
@end

NS_STUB(NSURL, NSObject)
+ (NSURL *)fileURLWithPath:(NSString *)path;
@end

NS_STUB(NSError, NSObject)
@property(readonly) NSString *domain;
@property(readonly) NSInteger code;
@property(readonly) NSString *localizedDescription;
@property(readonly) NSString *localizedFailureReason;
@end

NS_STUB(NSException, NSObject)
@property(readonly) NSString *name;
@property(readonly) NSString *reason;
@end

Class NSClassFromString(NSString *name);
NSString *NSTemporaryDirectory(void);

#endif
